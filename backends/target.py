"""The machine and runtime that a model is optimized for, as a recipe's `target` writes it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from onnxopt.backends import machine

Isa = Literal["avx2", "avx_vnni", "avx512", "avx512_vnni", "amx", "neon", "neon_dot", "neon_i8mm", "sve"]


class Qdq(BaseModel):
    """How activations are quantized for this target.

    `activation` is their type: uint8 is the faster one in ONNX Runtime's integer kernels on x86.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    activation: Literal["uint8", "int8"] = "uint8"


class Target(BaseModel):
    """Where the optimized model will run. A plain string is the profile's name; what is None is not assumed.

    Attributes:
        name: `portable` assumes nothing beyond standard ONNX; `cpu` and `cuda` name ONNX Runtime's provider.
        isa: the processor's best instruction set.
        threads: threads inside an operator.
        onnxruntime: version of the runtime there, such as "1.23".
        max_opset: newest opset of ai.onnx that the runtime there loads.
        qdq: how activations are quantized.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["portable", "cpu", "cuda"] = "cpu"
    isa: Isa | None = None
    threads: PositiveInt | None = None
    onnxruntime: str | None = Field(default=None, pattern=r"^\d+\.\d+(\.\d+)?$")
    max_opset: int | None = Field(default=None, ge=7)
    qdq: Qdq = Qdq()

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def host(cls) -> "Target":
        """This machine's processor with the installed ONNX Runtime."""
        return cls(name="cpu").resolved()

    def resolved(self) -> "Target":
        """This profile with what it leaves open taken from this machine; `portable` stays open."""
        if self.name == "portable":
            return self
        # Importing ONNX Runtime takes longer than reading a whole recipe, which needs none of this.
        from onnxopt.backends import capabilities

        best = machine.isa_of(machine.cpu_flags())
        measured: dict[str, Any] = {
            "isa": best[0] if best else None,
            "threads": machine.cores(),
            "onnxruntime": capabilities.runtime_version(),
            "max_opset": capabilities.max_opset(),
        }
        open_fields = {name: value for name, value in measured.items() if getattr(self, name) is None}
        return self.model_copy(update=open_fields)
