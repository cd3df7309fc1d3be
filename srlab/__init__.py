"""SR Lab: rerun, explain and question Implicit Grid Convolution for multi-scale super-resolution (arXiv 2408.09674).

Each module is a room with one job: pictures (`images`, `resize`, `metrics`, `datasets`), models (`encoders`,
`upsamplers`, `igconv`, `models`, `weights`), training and scores (`train`, `evaluate`), analyses, drawings.
`import srlab` alone loads none of them, so that the command line answers at once; `srlab.resize` loads `resize`.
"""

import importlib
import pkgutil
from types import ModuleType


def _rooms() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def __getattr__(name: str) -> ModuleType | str:
    if name == "__version__":
        from importlib.metadata import version

        return version("srlab")
    if name in _rooms():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"srlab has no room {name!r}; there are: {', '.join(_rooms())}")


def __dir__() -> list[str]:
    return [*globals(), "__version__", *_rooms()]
