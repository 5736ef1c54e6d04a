# SPDX-License-Identifier: Apache-2.0
"""The rows of the architecture table out of the facts of arch_facts.py. Pure: equal facts
and equal hand-written rows give an equal table.

fp32, fp32s and conv1d are facts as they stand. The others, in this order:

    opt    Linears that one class of a kind has and another one lacks
    heads  what the library leaves alone when it is not told what, and the general rules
           of the policy do not keep by themselves
    tied   skip entries for what the loader would replace without finding its codes:
           weights that are tied, cut, put together, or saved under another name and kept
    never  weights that the policy would quantize by their names and the loader does not
           take as codes: of embeddings, of parameters, of what it cuts

The last two are found by trying: the policy (its definition in tests/reference) plans
each class, the loader's rule of replacing is applied to the result, and what does not
fit becomes a row, until all fits.
"""
import collections
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "reference"))

import bnbrule  # noqa: E402

ROUNDS_MAX = 12


class Stuck(Exception):
    """The rules above do not lead to a table."""


def module_of(tensor):
    return tensor.removesuffix(".weight")


def star(path):
    return "**." + ".".join("*" if c.isdigit() else c for c in path.split("."))


def without_covered(globs):
    """Sorted, without those that a shorter one includes."""
    return sorted(g for g in set(globs)
                  if not any(g != h and bnbrule.glob(h, g.removeprefix("**."))
                             for h in globs))


def is_numbered(path):
    return any(c.isdigit() for c in path.split("."))


def saved_names(fact):
    """{module: the name of its weight in a checkpoint, without '.weight'}"""
    return {module_of(origin): module_of(name)
            for name, (_, _, origin) in fact["weights"].items() if origin}


def kinds_of(fact):
    return {module: kind for module, kind, *_ in fact["linears"]}


# ---- opt ----

# A class that lacks one of these lacks all the layers in it: no name in a list helps.
BODIES = {"decoder", "encoder", "model", "text_model"}


def own_names(fact):
    """The Linears that are in a checkpoint, named from the class's base model on."""
    prefix = fact.get("prefix") or ""
    kinds = kinds_of(fact)
    return {m.removeprefix(prefix + ".") if prefix else m for m in saved_names(fact)
            if kinds.get(m) == "Linear"}


def optional_of(facts):
    """Those names that not all classes of a kind have."""
    have = [own_names(f) for f in facts]
    names = set().union(*have) - set.intersection(*have) - set(bnbrule.OPTIONAL)
    return {n for n in names if not is_numbered(n) and not bnbrule.is_head(n)
            and n.split(".")[0] not in BODIES}


# ---- heads ----

def kept_by_default(fact):
    return {m for m, *_ in fact["linears"]
            if any(bnbrule.skip_v5(m, k) for k in fact.get("keep", ()))}


def heads_of(fact):
    """(heads, other weights to keep): what is saved under another name than that of a
    head which all loaders know is no head by that name."""
    saved = saved_names(fact)
    own = {m for m in kept_by_default(fact) if m in saved
           and not bnbrule.is_head(saved[m])}
    other = {m for m in own if bnbrule.is_head(m)}
    return {star(saved[m]) for m in own - other}, {saved[m] for m in other}


# ---- never ----

def globs_for(path):
    """Ways to name the weight, the widest first: from its last number on, whole."""
    parts = path.split(".")
    at = [i for i, part in enumerate(parts[:-1]) if part.isdigit()]
    if at and not parts[-1].isdigit():
        rest = len(parts) - 1 - at[-1]
        yield star(".".join(parts[at[-1] + 1 if rest > 1 else max(at[-1] - 1, 0):]))
    yield star(path)


def glob_for(path, linears):
    """The widest that means no Linear of the kind."""
    for glob in globs_for(path):
        if not any(bnbrule.glob(glob, linear) for linear in linears):
            return glob
    return glob


def wrongly_coded(fact, plan, replaced):
    """(weights that must not be quantized, parameters that rightly are)"""
    kinds = kinds_of(fact)
    numbers = {m: number for m, _, number, _ in fact["linears"]}
    never, coded = set(), set()
    for name in plan.quant:
        origin = fact["weights"][name][2]
        module = module_of(origin) if origin else None
        if module in replaced and (kinds[module] == "Conv1D") == (name in plan.conv1d):
            coded.add(numbers[module])
        else:
            never.add(module_of(name))
    return never, coded


# ---- tied ----

def replaced_by_loader(fact, skip):
    entries = [*skip, *fact.get("fp32", ())]
    diffusers = fact["family"] == "diffusers"
    match = bnbrule.skip_v4 if diffusers else bnbrule.skip_v5
    return {m for m, kind, _, visited in fact["linears"]
            if visited and not (diffusers and kind == "Conv1D")
            and not any(match(m, e) for e in entries)}


def without_codes(fact, plan, replaced, coded):
    """Modules that must not be replaced."""
    saved = saved_names(fact)
    numbers = {m: number for m, _, number, _ in fact["linears"]}
    out = set()
    for module in replaced:
        if module in saved:
            wrong = saved[module] + ".weight" not in plan.quant
        else:
            wrong = not {numbers[module], numbers.get(tied_to(fact, module))} & coded
        if wrong:
            out.add(module)
    return out


def tied_to(fact, module):
    name = module + ".weight"
    for _ in fact.get("tied", ()):
        name = fact["tied"].get(name, name)
    return module_of(name)


def entries_for(module, plan):
    """The skip entries that keep the module from being replaced, and of the ways to name
    it that one which keeps the fewest others. A number in it stands for many."""
    parts = module.split(".")
    at = [i for i, part in enumerate(parts) if part.isdigit()]
    if not at:
        return [module]
    if at[-1] < len(parts) - 1:
        return [".".join(parts[at[-1] + 1:])]
    while parts[-1].isdigit():  # of a list, or of lists in a list: the outermost's name
        parts.pop()
    middle = ".".join(parts[max([i + 1 for i in at if i < len(parts)], default=0):])
    ways = [[".".join(parts[:at[0]])], [middle, ".*." + middle]]

    def cost(way):
        return sum(bnbrule.matches_skip(module_of(name), way) for name in plan.quant)

    return min(ways, key=cost)


# ---- all of it ----

class Table:
    """The rows while they grow."""

    def __init__(self, base):
        self.rows = {family: collections.defaultdict(dict, {
            name: {field: copy_of(value) for field, value in row.items()}
            for name, row in base[family].items()}) for family in base}

    def add(self, fact, field, items, per_class=False):
        """Whether anything is new."""
        row = self.rows[fact["family"]][fact["kind"]]
        if per_class:
            row = row.setdefault(field, {})
            field = fact["class"]
        have = row.setdefault(field, [])
        new = [item for item in items if item not in have]
        have += new
        if not have:
            del row[field]
        return bool(new)

    def covers(self, fact, glob):
        row = self.rows[fact["family"]][fact["kind"]]
        return any(bnbrule.glob(have, glob.removeprefix("**."))
                   for have in row.get("never", ()))

    def finished(self):
        out = {}
        for family, rows in self.rows.items():
            out[family] = {}
            for name, row in sorted(rows.items()):
                row = {field: finish_field(field, value) for field, value in row.items()}
                row = {field: value for field, value in sorted(row.items()) if value}
                if row:
                    out[family][name] = row
        return out


def copy_of(value):
    return {k: list(v) for k, v in value.items()} if isinstance(value, dict) \
        else list(value)


def finish_field(field, value):
    if isinstance(value, dict):
        return {cls: finish_field(field, items) for cls, items in sorted(value.items())
                if items}
    if field in ("never", "heads"):
        return without_covered(value)
    return value if field == "fp32" else sorted(value)


FACTS = []  # for workers, which inherit them and the table


def plan_of(fact, config):
    tensors = {name: (dtype, tuple(shape))
               for name, (dtype, shape, _) in fact["weights"].items()}
    return bnbrule.plan(tensors, config, vae=True)


def fit(index):
    """What does not fit in one class: (weights never to quantize, skip entries)."""
    fact = FACTS[index]
    never = set()
    flat = {k: v for k, v in fact["config"].items() if not isinstance(v, dict)}
    if len(flat) < len(fact["config"]):
        # What is no Linear is named in the outer row too: the config of an older
        # checkpoint may not say which models are inside.
        plan = plan_of(fact, flat)
        kinds = kinds_of(fact)
        origins = {n: fact["weights"][n][2] for n in (plan.quant if plan else ())}
        never = {module_of(n) for n, o in origins.items()
                 if o is None or module_of(o) not in kinds}
    plan = plan_of(fact, fact["config"])
    if plan is None:
        return [], []
    replaced = replaced_by_loader(fact, plan.skip)
    wrong, coded = wrongly_coded(fact, plan, replaced)
    bare = without_codes(fact, plan, replaced, coded)
    entries = [e for m in sorted(bare) for e in entries_for(m, plan)]
    return sorted(never | wrong), list(dict.fromkeys(entries))


def kinds_in(config):
    out = {config.get("model_type"), config.get("_class_name")}
    for value in config.values():
        if isinstance(value, dict):
            out |= kinds_in(value)
    return out


def by_kind(facts):
    out = collections.defaultdict(list)
    for fact in facts:
        out[fact["family"], fact["kind"]].append(fact)
    return out


def linears_by_kind(facts):
    """{(family, kind): names of weights in checkpoints that are those of Linears}"""
    out = collections.defaultdict(set)
    for fact in facts:
        kinds, saved = kinds_of(fact), saved_names(fact)
        out[fact["family"], fact["kind"]] |= {saved[m] for m in saved if m in kinds}
    return out


def add_attributes(table, facts):
    for fact in facts:
        if fact["family"] == "diffusers" and fact.get("fp32"):
            table.rows["diffusers"][fact["kind"]]["fp32"] = {"*": fact["fp32"]}
        elif fact["family"] == "transformers":
            for field in ("fp32", "fp32s"):
                table.add(fact, field, sorted(fact.get(field, ())), per_class=True)


def add_names(table, facts):
    """opt, heads, conv1d: transformers knows them, diffusers does not."""
    facts = [fact for fact in facts if fact["family"] == "transformers"]
    for group in by_kind(facts).values():
        table.add(group[0], "opt", sorted(optional_of(group)))
    for fact in facts:
        heads, never = heads_of(fact)
        table.add(fact, "conv1d", fact["conv1d"])
        table.add(fact, "heads", sorted(heads), per_class=True)
        table.add(fact, "never", sorted(map(star, never)))


def one_round(table, linears, work, each):
    """The kinds whose rows have grown."""
    changed, left = set(), []
    for index, (never, entries) in zip(work, list(each(fit, work))):
        fact = FACTS[index]
        own = linears[fact["family"], fact["kind"]]
        wrong = {path for path in never if path in own}
        globs = [glob_for(path, own - wrong) for path in never]
        new = table.add(fact, "never", [g for g in globs if not table.covers(fact, g)])
        new |= table.add(fact, "tied", entries, per_class=True)
        if new:
            changed.add(fact["kind"])
        elif never or entries:
            left.append(f"{fact['label']}: {(never + entries)[:5]}")
    if left and not changed:
        raise Stuck(f"still wrong: {'; '.join(left[:5])}")
    return changed


def derive(facts, base, each=map, say=lambda text: None):
    """{family: {name: row}}: `base` (of the same form) and what follows from the facts.
    each(function, indices): as map, in processes that are made by the call."""
    table = Table(base)
    FACTS[:] = [fact for fact in facts if "error" not in fact]
    linears = linears_by_kind(FACTS)
    add_attributes(table, facts)
    add_names(table, FACTS)
    bnbrule._T = table.rows
    work = list(range(len(FACTS)))
    for number in range(ROUNDS_MAX):
        say(f"round {number + 1}: {len(work)} plans")
        changed = one_round(table, linears, work, each)
        if not changed:
            return table.finished()
        work = [i for i, f in enumerate(FACTS)
                if kinds_in(f["config"]) & changed or f["kind"] in changed]
    raise Stuck(f"no end after {ROUNDS_MAX} rounds: {sorted(changed)}")
