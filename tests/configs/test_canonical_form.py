"""Which changes make a duplicate, and which near misses do not."""

import ast
import io
import random
import symtable
import tokenize
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import canonical_form
from tasks.records import Candidate

TRAIN = (Path(__file__).parents[2] / "trainer" / "train.py").read_text()
SEEDED = """
import random
import numpy as np
import torch
import trainer.harness as harness
"""


def digest(source: str) -> str:
    found = Candidate.parse(source).digest
    assert found is not None
    return found


SAME = {
    "a local": ("def f(a):\n    x = a\n    return x", "def f(a):\n    y = a\n    return y"),
    "two locals swap their names": (
        "def f(a):\n    x = a\n    y = 2 * a\n    return x - y",
        "def f(a):\n    y = a\n    x = 2 * a\n    return y - x",
    ),
    "a loop, a with, an except, a walrus": (
        "def f():\n    for i in a: print(i)\n    with b as j: j\n    try: c\n"
        "    except E as k: k\n    if (n := d): n",
        "def f():\n    for p in a: print(p)\n    with b as q: q\n    try: c\n"
        "    except E as r: r\n    if (s := d): s",
    ),
    "a closure": (
        "def f():\n    x = 1\n    def g(a): return a + x\n    return g, lambda: x",
        "def f():\n    y = 1\n    def g(a): return a + y\n    return g, lambda: y",
    ),
    "a comprehension": (
        "A = [x * y for x in range(3) if x for y in range(x)]",
        "A = [b * c for b in range(3) if b for c in range(b)]",
    ),
    "a walrus in a comprehension": (
        "def f(a): return [y for x in a if (y := x)], y",
        "def f(a): return [q for x in a if (q := x)], q",
    ),
    "parameters that nobody can name": (
        "def f(x, /, *y, **z): return x, y, z",
        "def f(a, /, *b, **c): return a, b, c",
    ),
    "a local that hides a global": (
        "x = 1\ndef f():\n    x = 2\n    return x",
        "x = 1\ndef f():\n    z = 2\n    return z",
    ),
    "the order of imports": (
        "from __future__ import annotations\nimport os\nimport sys\nfrom a import c, b as d",
        "from __future__ import annotations\nfrom a import b as d\nfrom a import c\nimport sys, os",
    ),
    "a seed": (
        f"{SEEDED}torch.manual_seed(harness.seed())",
        f"{SEEDED}torch.manual_seed(3 * harness.seed() + 1)",
    ),
    "seeds of every kind": (
        f"{SEEDED}np.random.default_rng(0); torch.Generator('cpu').manual_seed(0)\n"
        "random.seed(1); np.random.seed(seed=2); random.Random(3); torch.cuda.manual_seed_all(4)",
        f"{SEEDED}np.random.default_rng(9); torch.Generator('cpu').manual_seed(harness.seed())\n"
        "random.seed(5); np.random.seed(seed=6); random.Random(7); torch.cuda.manual_seed_all(8)",
    ),
    "an equal seed that is changed everywhere": (
        f"{SEEDED}torch.manual_seed(1)\ntorch.manual_seed(1)",
        f"{SEEDED}torch.manual_seed(2)\ntorch.manual_seed(2)",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_what_makes_no_difference_makes_a_duplicate(name):
    one, other = SAME[name]
    assert digest(one) == digest(other)


DIFFERENT = {
    "another local is read": (
        "def f():\n    x, y = 1, 2\n    return x",
        "def f():\n    x, y = 1, 2\n    return y",
    ),
    "a local and a global": (
        "x = 1\ndef f():\n    y = 2\n    return x",
        "x = 1\ndef f():\n    x = 2\n    return x",
    ),
    "a global statement": (
        "def f():\n    global x\n    x = 1",
        "def f():\n    global y\n    y = 1",
    ),
    "a nonlocal variable and a local one": (
        "def f():\n    x = 1\n    def g():\n        nonlocal x\n        x = 2\n    return x, g",
        "def f():\n    x = 1\n    def g():\n        nonlocal x\n        y = 2\n    return x, g",
    ),
    "a variable of the inner or of the outer function": (
        "def f():\n    x = 1\n    def g():\n        y = 2\n        return x\n    return g",
        "def f():\n    x = 1\n    def g():\n        x = 2\n        return x\n    return g",
    ),
    "a parameter that a caller may name": ("def f(x): return x", "def f(y): return y"),
    "a keyword": ("f(x=1)", "f(y=1)"),
    "an attribute": ("def f(a):\n    a.x = 1", "def f(a):\n    a.y = 1"),
    "a global": ("x = 1", "y = 1"),
    "a function's own name": ("def f():\n    def g(): 0", "def f():\n    def h(): 0"),
    "an import in a function": ("def f():\n    import x", "def f():\n    import y"),
    "a text that holds the name": (
        "def f():\n    x = 1\n    return f'{x=}'",
        "def f():\n    y = 1\n    return f'{y=}'",
    ),
    "locals": (
        "def f():\n    x = 1\n    return locals()",
        "def f():\n    y = 1\n    return locals()",
    ),
    "eval by another name": (
        "from builtins import eval as run\ndef f():\n    x = 1\n    return run('x')",
        "from builtins import eval as run\ndef f():\n    y = 1\n    return run('x')",
    ),
    "a caller's variables": (
        "import sys\ndef f():\n    x = 1\n    return sys._getframe().f_back",
        "import sys\ndef f():\n    y = 1\n    return sys._getframe().f_back",
    ),
    "the order of a closure's cells": (
        "def f():\n    a, b = 1, 2\n    return (lambda: (a, b)).__closure__[0].cell_contents",
        "def f():\n    b, a = 1, 2\n    return (lambda: (b, a)).__closure__[0].cell_contents",
    ),
    "a class in a function": (
        "def f():\n    x = 1\n    class A:\n        x = x",
        "def f():\n    y = 1\n    class A:\n        x = x",
    ),
    "a class sees its own attribute, a method does not": (
        "def f():\n    y = 1\n    class A:\n        x = 2\n        def g(self): return y",
        "def f():\n    x = 1\n    class A:\n        x = 2\n        def g(self): return x",
    ),
    "a mangled name": (
        "class A:\n    def f(self):\n        __x = 1\n        return __x",
        "class A:\n    def f(self):\n        x = 1\n        return x",
    ),
    "an annotation that is kept as a text": (
        "from __future__ import annotations\ndef f():\n    x = 1\n    def g(a: x): 0",
        "from __future__ import annotations\ndef f():\n    y = 1\n    def g(a: y): 0",
    ),
    "the iterable of a comprehension is evaluated outside": (
        "def f(a):\n    x = a\n    return [x for x in x]",
        "def f(a):\n    x = a\n    return [y for y in y]",
    ),
    "an inner comprehension's variable": (
        "A = [[x for y in x] for x in b]",
        "A = [[y for y in x] for x in b]",
    ),
    "a pattern binds": (
        "def f(a):\n    match a:\n        case x: return x",
        "def f(a):\n    match a:\n        case y: return x",
    ),
    "two imports of one name": (
        "from a import x\nfrom b import x",
        "from b import x\nfrom a import x",
    ),
    "two names of all": ("from a import *\nfrom b import *", "from b import *\nfrom a import *"),
    "an import before what it needs": (
        "import os\nos.environ['A'] = '1'\nimport torch",
        "import os\nimport torch\nos.environ['A'] = '1'",
    ),
    "an import of something else": ("import a.b as c", "import a.d as c"),
    "a relative import": ("from . import a", "from .. import a"),
    "a text that looks like a docstring": ("def f(): return 'a'", "def f(): return 'b'"),
    "a docstring that is read": (
        "def f():\n    'a'\nprint(f.__doc__)",
        "def f():\n    'b'\nprint(f.__doc__)",
    ),
    "a comment that is read": ("print(open(__file__).read()) # a", "print(open(__file__).read())"),
    "two generators with one seed, and with two": (
        f"{SEEDED}a = np.random.default_rng(0), np.random.default_rng(0)",
        f"{SEEDED}a = np.random.default_rng(0), np.random.default_rng(1)",
    ),
    "a seed and none": (
        f"{SEEDED}a = np.random.default_rng(0)",
        f"{SEEDED}a = np.random.default_rng()",
    ),
    "a seed that is more than a seed": (
        f"{SEEDED}torch.manual_seed(f())",
        f"{SEEDED}torch.manual_seed(g())",
    ),
    "a seed that is refused": (
        f"{SEEDED}np.random.seed(2 * 2147483647)",
        f"{SEEDED}np.random.seed(2)",
    ),
    "a negative seed": (f"{SEEDED}np.random.seed(-1)", f"{SEEDED}np.random.seed(1)"),
    "True": (f"{SEEDED}torch.manual_seed(True)", f"{SEEDED}torch.manual_seed(1)"),
    "a text as a seed": (f"{SEEDED}random.seed('seed 0')", f"{SEEDED}random.seed(0)"),
    "the harness's seed in a computation": (
        f"{SEEDED}x = harness.seed()",
        f"{SEEDED}x = harness.seed() + 1",
    ),
    "a function of the file's own": (
        "import random\ndef seed(n): return n\nrandom.seed = seed\nx = random.seed(1)",
        "import random\ndef seed(n): return n\nrandom.seed = seed\nx = random.seed(2)",
    ),
    "another harness": (
        "import other as harness, torch\ntorch.manual_seed(harness.seed())",
        "import other as harness, torch\ntorch.manual_seed(1)",
    ),
    "a name that is not always the module": (
        "import random\ndef f(random): random.seed(1)",
        "import random\ndef f(random): random.seed(2)",
    ),
    "a method of the file's own": (
        "class A:\n    def manual_seed(self, n): return n\nx = A().manual_seed(1)",
        "class A:\n    def manual_seed(self, n): return n\nx = A().manual_seed(2)",
    ),
    "a seed that is read again": (
        f"{SEEDED}torch.manual_seed(1)\nx = torch.initial_seed()",
        f"{SEEDED}torch.manual_seed(2)\nx = torch.initial_seed()",
    ),
    "which of three seeds are equal": (
        f"{SEEDED}for n in (0,): torch.manual_seed(1), torch.manual_seed(2), torch.manual_seed(1)",
        f"{SEEDED}for n in (0,): torch.manual_seed(1), torch.manual_seed(2), torch.manual_seed(2)",
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_near_miss_is_no_duplicate(name):
    one, other = DIFFERENT[name]
    assert digest(one) != digest(other)


# Programs whose names say much: most changes of one of them change what is printed.
PROGRAMS = (
    """
a, b = 1, 2
def f(c, /, d=3, *e, g=4, **h):
    i = c + a
    j = [k + i for k in range(d) if (l := k) or l == 0]
    def m(n=i):
        nonlocal i
        i += n + g + l
        o = i
        return o + b
    try:
        p = m() / len(e)
    except ZeroDivisionError as q:
        p = len(str(q)) + len(h)
    return i, j, p, lambda r: r + i
print(f(5)[:3], f(6, 2, 7, g=8, s=9)[:3], f(1)[3](2))
""",
    """
x = 10
def f(y):
    z = y
    class A:
        x = z + 1
        w = [z for z in range(x)]
        def g(self, v):
            u = x + v
            return u, {t: z for t in self.w}
    for z in range(3):
        y += z
    t = [[z * y for y in range(z)] for z in range(y)]
    del z
    with open('/dev/null') as z:
        s = z.read()
    return A.x, A.w, A().g(y), t, s
print(f(2))
""",
    """
def f(a):
    global b
    b = a
    c = d = 0
    while (e := b - d) > 0:
        d += 1
        c, g = d, (h for h in range(e) if h != c)
    match [c, *g]:
        case [k, *l]:
            return k, l, b, d
    return c
print(f(3), b)
""",
)
NAMES = "abcdefghijklmnopqrstuvwxyz"


def outcome(source: str) -> str:
    printed: list[object] = []
    try:
        exec(compile(source, "program", "exec"), {"print": lambda *what: printed.append(what)})
    except Exception as error:
        return f"{printed} {type(error).__name__}"
    return f"{printed}"


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PROGRAMS), st.randoms(use_true_random=False), st.integers(1, 4))
def test_programs_of_one_digest_do_the_same(program, chance, changes):
    """Names are exchanged at random, in some places or everywhere."""
    changed = program
    for _ in range(changes):
        changed = with_another_name(changed, chance)
    found = Candidate.parse(changed).digest
    if found is not None and found == digest(program):
        assert outcome(changed) == outcome(program)


def with_another_name(program: str, chance: random.Random) -> str:
    old, new = chance.sample(NAMES, 2)
    tokens = list(tokenize.generate_tokens(io.StringIO(program).readline))
    places = [i for i, token in enumerate(tokens) if token.type == 1 and token.string == old]
    most = chance.choice([1, len(places)])
    chosen = set(chance.sample(places, min(most, len(places))))
    text = [(token.type, new if i in chosen else token.string) for i, token in enumerate(tokens)]
    return tokenize.untokenize(text)


def test_programs_print_what_their_names_decide():
    """So that the test above cannot pass by errors alone."""
    assert ["Error" in outcome(program) for program in PROGRAMS] == [False] * len(PROGRAMS)


def test_every_local_of_train_py_may_have_another_name():
    """Of the functions in which no other scope could be meant, by Python's own table of symbols."""
    table = symtable.symtable(TRAIN, "train.py", "exec")
    simple = {
        scope.get_name(): {
            symbol.get_name()
            for symbol in scope.get_symbols()
            if symbol.is_local() and not (symbol.is_parameter() or symbol.is_imported())
        }
        for scope in table.get_children()
        if scope.get_type() == "function" and not scope.get_children()
    }
    tree = ast.parse(TRAIN)
    for function in tree.body:
        names = simple.get(function.name, ()) if isinstance(function, ast.FunctionDef) else ()
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in names:
                node.id = f"quite_new_{node.id}"
    renamed = ast.unparse(tree)
    assert renamed.count("quite_new") > 50
    assert digest(renamed) == digest(TRAIN)


def test_a_digest_says_which_form_it_is_of():
    assert digest("x = 1").startswith(canonical_form.VERSION)
