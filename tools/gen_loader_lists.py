#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the lists in view/renamed.c and view/gguf_classes.c out of the transformers and
diffusers that are installed.

    tools/gen_loader_lists.py            write them
    tools/gen_loader_lists.py --check    write nothing; exit 1 when they would be others,
                                         2 when other versions are installed than the
                                         files name

What a renaming concerns is told by its patterns alone: it does not matter here when all
that it takes, or all that it makes, is something that every view keeps as it is.
"""
import argparse
import importlib
import importlib.metadata
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIST = re.compile(r"(= \{\n(?:    /\* sorted \*/\n)?)(?:    \".*\",\n)*(?=\};)")
KEPT = re.compile(r"norm|(?<!patch_)embed|(?<!shared_)expert|router|gate\b|bn|conv"
                  r"|position|token|ln_|wte|wpe|gamma|beta|bias|block_sparse_moe\.$",
                  re.IGNORECASE)


class Types:
    """model_type by the name of a class."""

    def __init__(self):
        import transformers
        from transformers.models.auto import modeling_auto
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
        self.known = set(CONFIG_MAPPING_NAMES)
        self.auto = {}
        for name in dir(modeling_auto):
            if name.endswith("_MAPPING_NAMES"):
                for kind, classes in getattr(modeling_auto, name).items():
                    for one in [classes] if isinstance(classes, str) else classes:
                        self.auto.setdefault(one, set()).add(kind)
        self.files = {}
        models = pathlib.Path(transformers.__file__).parent / "models"
        for path in sorted(models.glob("*/modeling_*.py")):
            for one in re.findall(r"^class (\w+)\(", path.read_text(), re.M):
                self.files.setdefault(one, path)

    def of(self, name):
        if name in self.known:
            return {name}
        if name in self.auto:
            return self.auto[name]
        path = self.files.get(name)
        if path is None:  # a model_type that no config says, or a class that is not there
            return {name} if name[0].islower() else set()
        module = importlib.import_module(
            f"transformers.models.{path.parent.name}.{path.stem}")
        config = getattr(getattr(module, name), "config_class", None)
        return {getattr(config, "model_type", None) or name}


def patterns(value):
    return [value] if isinstance(value, str) else list(value)


def concerns_linears(conversion):
    return not any(all(KEPT.search(p) for p in patterns(side))
                   for side in (conversion.source_patterns, conversion.target_patterns))


def renamed_types():
    from transformers import conversion_mapping
    made = conversion_mapping._build_checkpoint_conversion_mapping()
    like = conversion_mapping._MODEL_TO_CONVERSION_PATTERN
    types = Types()
    found = set()
    for name in sorted(set(made) | set(like)):
        conversions = made.get(name) or made.get(like.get(name)) or []
        # "legacy" is no architecture.
        if name != "legacy" and any(concerns_linears(c) for c in conversions):
            found |= types.of(name)
    return found


def single_file_classes():
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
    return {name for name in SINGLE_FILE_LOADABLE_CLASSES if "Autoencoder" not in name}


FILES = (("view/renamed.c", "transformers", r"transformers \(([0-9.]+)", renamed_types),
         ("view/gguf_classes.c", "diffusers", r"diffusers ([0-9.]+)", single_file_classes))


def short(version, like):
    return ".".join(version.split(".")[:like.count(".") + 1])


def main():
    args = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--check", action="store_true")
    check = args.parse_args().check
    status = 0
    for name, package, version_in, names in FILES:
        path = ROOT / name
        old = path.read_text()
        said = re.search(version_in, old)
        installed = short(importlib.metadata.version(package), said[1])
        if check and installed != said[1]:
            print(f"{name}: of {package} {said[1]}, installed is {installed}",
                  file=sys.stderr)
            status = max(status, 2)
            continue
        lines = "".join(f'    "{one}",\n' for one in sorted(names()))
        new = LIST.sub(lambda m: m[1] + lines, old, count=1)
        new = new[:said.start(1)] + installed + new[said.end(1):]
        if new != old and check:
            print(f"{name}: is not what {package} {installed} gives", file=sys.stderr)
            status = 1
        elif new != old:
            path.write_text(new)
            print(f"{name}: written, of {package} {installed}")
    return status


if __name__ == "__main__":
    sys.exit(main())
