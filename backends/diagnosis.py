"""ONNX Runtime's exceptions in one line: what is wrong, with which node or tensor, and what to do about it.

ONNX Runtime puts its facts into free text. Each rule below knows one such text; what no rule knows is told in
ONNX Runtime's own words, without its source locations.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

from onnxopt.errors import DataError, ModelError
from onnxopt.kernels import library

if TYPE_CHECKING:
    import onnx

Source = Path | bytes
RUNTIME = f"ONNX Runtime {ort.__version__}"

_OWN_DOMAIN = "ai.onnxopt"
_RUNTIME_DOMAINS = frozenset({"com.microsoft", "com.ms.internal.nhwc", "com.microsoft.nchwc"})
_Rule = Callable[[re.Match[str], Source], str]


def load_error(error: Exception, source: Source) -> ModelError:
    """What `error`, raised while a session was made of `source`, means."""
    text = str(error)
    for pattern, rule in _LOAD_RULES:
        if found := pattern.search(text):
            return ModelError(_prefixed(source, rule(found, source)))
    return ModelError(_prefixed(source, f"{RUNTIME} refuses the model: {_meaningful(text)}"))


def run_error(error: Exception) -> ModelError | DataError:
    """What `error`, raised while a session ran, means: the model is too large (ModelError), or the feeds are wrong."""
    text = str(error)
    found = _NODE_FAILED.search(text)
    where = f"{_node(found['node'], found['op'])} failed" if found else f"{RUNTIME} does not run these feeds"
    why = _meaningful(text[found.end() :] if found else text)
    if memory := _NO_MEMORY.search(text):
        return ModelError(f"{where}: {_out_of_memory(memory, b'')}")
    return DataError(f"{where}: {why}")


def _prefixed(source: Source, message: str) -> str:
    return message if isinstance(source, bytes) else f"{source}: {message}"


def _node(name: str, op: str, domain: str = "") -> str:
    described = f"op {op}, domain {domain}" if domain and domain != "ai.onnx" else f"op {op}"
    return f"node {name!r} ({described})" if name else f"a node without a name ({described})"


def _all_nodes(model: "onnx.ModelProto") -> "Iterator[onnx.NodeProto]":
    """The nodes of the graph, of its functions and of all subgraphs."""
    waiting = [model.graph.node, *(function.node for function in model.functions)]
    while waiting:
        for node in waiting.pop():
            yield node
            for attribute in node.attribute:
                waiting.extend(graph.node for graph in (attribute.g, *attribute.graphs) if graph.node)


def _find_node(source: Source, op: str, *, domain: str | None = None, name: str | None = None) -> "tuple[str, str]":
    """(name, domain) of the first node of type `op` (in `domain`, called `name`), for messages that lack the rest."""
    import onnx  # slow to import, and needed only when something is wrong

    try:
        parsed = onnx.ModelProto.FromString(source if isinstance(source, bytes) else source.read_bytes())
    except Exception:  # the message must not depend on whether a second reader understands the file
        return name or "", domain or ""
    same_op = ((node.name, node.domain) for node in _all_nodes(parsed) if node.op_type == op)
    matching = (each for each in same_op if name in (None, each[0]) and domain in (None, each[1]))
    return next(matching, (name or "", domain or ""))


def _no_kernel(found: re.Match[str], source: Source) -> str:
    name, domain = _find_node(source, found["op"], name=found["node"])
    return (
        f"{_node(name, found['op'], domain)} has no kernel in {RUNTIME} "
        f"for its types at version {found['version']} of the operator; use other types or upgrade the opset"
    )


def _not_registered(found: re.Match[str], source: Source) -> str:
    name, domain = _find_node(source, found["op"], domain=found["domain"])
    where = f"{_node(name, found['op'], domain)} has no kernel in {RUNTIME}"
    if domain == _OWN_DOMAIN:
        return f"{where}: {library.why_unavailable() or 'this version of the library does not have it'}"
    if domain in _RUNTIME_DOMAINS:
        return f"{where}, whose own domain this is; another version of ONNX Runtime may have it"
    return (
        f"{where}; register its library with SessionOptions.register_custom_ops_library "
        "and pass them to onnxopt.session(session_options=...)"
    )


def _no_such_op(found: re.Match[str], source: Source) -> str:
    return (
        f"{_node(found['node'], found['op'])}: opset {found['version']} has no operator of that name in {RUNTIME}; "
        "if it is a custom operator, set the node's domain"
    )


def _no_import(found: re.Match[str], source: Source) -> str:
    return f"{_node(found['node'], found['op'], found['domain'])}: the model imports no opset for that domain"


def _opset(found: re.Match[str], source: Source) -> str:
    return (
        f"opset {found['opset']} of {found['domain']} is too new: {RUNTIME} takes at most {found['limit']}; "
        "convert the model or upgrade onnxruntime"
    )


def _ir(found: re.Match[str], source: Source) -> str:
    return (
        f"IR version {found['ir']} is too new: {RUNTIME} takes at most {found['limit']}; "
        "save the model with that ir_version or upgrade onnxruntime"
    )


def _not_protobuf(found: re.Match[str], source: Source) -> str:
    return "not an ONNX file, or a truncated one (protobuf parsing failed)"


def _no_file(found: re.Match[str], source: Source) -> str:
    return "no such file"


def _external_missing(found: re.Match[str], source: Source) -> str:
    return f"the external data of tensor {found['tensor']!r} is missing: {found['file']}"


def _external_outside(found: re.Match[str], source: Source) -> str:
    return f"the external data of tensor {found['tensor']!r} lies outside the model's folder: {found['file']}"


def _external_short(found: re.Match[str], source: Source) -> str:
    end = int(found["offset"]) + int(found["size"])
    return f"the external data of tensor {found['tensor']!r} is cut short: byte {end} of a file of {found['length']}"


def _out_of_memory(found: re.Match[str], source: Source) -> str:
    size = f" for {int(found['size']) / 1e9:.2f} GB" if found["size"] else ""
    return f"{RUNTIME} found no memory{size}; free memory or use smaller inputs"


def _invalid(found: re.Match[str], source: Source) -> str:
    node = found["node"]
    return f"invalid graph: {_node(node, found['op'], found['domain'])}: {_meaningful(found['why'])}"


_IN_NODE = r'In Node, \("(?P<node>[^"]*)", (?P<op>[^,]+), "(?P<domain>[^"]*)", [^)]*\) : .*?, Error '
_EXTERNAL = r"failed for initializer: (?P<tensor>.+?)\. Error: .*?"
_NO_MEMORY = re.compile(r"(?:Failed to allocate memory.*?(?P<size>\d+)?\s*$|bad_alloc|bad allocation)")
_NODE_FAILED = re.compile(r"while running (?P<op>\S+) node\. Name:'(?P<node>[^']*)' Status Message: ")

_LOAD_RULES: tuple[tuple[re.Pattern[str], _Rule], ...] = tuple(
    (re.compile(pattern, re.DOTALL), rule)
    for pattern, rule in (
        (r"implementation for (?P<op>[^\s(]+)\((?P<version>\d+)\) node with name '(?P<node>[^']*)'", _no_kernel),
        (r"(?P<domain>[\w.\-]+):(?P<op>[\w.\-]+)\(-?\d+\) is not a registered function/op", _not_registered),
        (_IN_NODE + "No opset import for domain", _no_import),
        (_IN_NODE + r"No Op registered for \S+ with domain_version of (?P<version>\d+)", _no_such_op),
        (_IN_NODE + "(?P<why>.*)", _invalid),
        (r"Opset (?P<opset>\d+) is under.*support for domain (?P<domain>\S+) is till opset (?P<limit>\d+)", _opset),
        (r"model IR version: (?P<ir>\d+), max supported IR version: (?P<limit>\d+)", _ir),
        (r"[Pp]rotobuf parsing failed", _not_protobuf),
        (r"NO_SUCHFILE.*File doesn't exist", _no_file),
        (_EXTERNAL + 'External data path does not exist: "(?P<file>[^"]+)"', _external_missing),
        (_EXTERNAL + 'External data path escapes.*?"(?P<file>[^"]+)"', _external_outside),
        (
            r"External initializer: (?P<tensor>.+?) offset: (?P<offset>\d+) size to read: (?P<size>\d+) "
            r"given file_length: (?P<length>\d+)",
            _external_short,
        ),
        (_NO_MEMORY.pattern, _out_of_memory),
    )
)

_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_LOCATION = re.compile(r"(?:/onnxruntime_src/|[A-Za-z]:\\)?[\w./\\]+\.(?:h|cc|cpp|cu|hpp):\d+ ")
_NOISE = (
    re.compile(r"^(?:Load model (?:from )?.+? failed[:.] ?)+"),
    re.compile(r"^(?:This is an i|I)nvalid model\. (?:Error: )?"),
    re.compile(r" ?Please fix either the inputs/outputs or the model\.?"),
)


def _after_signature(text: str) -> str:
    """`text` without the C++ signature that it begins with: all up to the parameters' closing parenthesis."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == ")" and depth == 0:
            return re.sub(r"^(?: const)?(?: \[with [^\]]*\])? ?", "", text[position + 1 :])
    return text


def _meaningful(text: str) -> str:
    """ONNX Runtime's `text` as one line without codes, source locations and C++ signatures."""
    text = _CODE.sub("", text.strip())
    if (location := _LOCATION.search(text)) and text.startswith("/", location.start()):
        text = text[: location.start()] + _after_signature(text[location.end() :])
    elif location:
        text = text[: location.start()] + re.sub(r"^[\w:~]+ ", "", text[location.end() :])
    for noise in _NOISE:
        text = noise.sub("", text)
    return " ".join(text.split()) or "no reason given"
