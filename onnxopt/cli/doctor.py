"""`onnxopt doctor`."""

from dataclasses import asdict

from onnxopt.backends.capabilities import capabilities
from onnxopt.backends.target import Target
from onnxopt.cli import output


def doctor(as_json: bool) -> None:
    """What this machine and its runtime can do, and the target profile that says so."""
    found = asdict(capabilities()) | {"target": Target.host().model_dump(mode="json")}
    if as_json:
        output.show_json(found)
    else:
        output.facts({name.replace("_", " "): _readable(name, value) for name, value in found.items()})


def _readable(name: str, value: object) -> object:
    if name.endswith("_bytes") and isinstance(value, int):
        return output.size(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return value
