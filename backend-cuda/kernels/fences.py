"""Slow fences in the loops of products and copies, which no count of budget.py shows. Used by it.

    MEMBAR of scope GPU or SYS    waits until all that the thread has stored is out: a round trip to
                                  L2 at least, hundreds of clocks
    CCTL.IVALL                    throws out all of L1

An arrival on an mbarrier in the scope .cluster is the first, a wait in it the second; in the default
scope, .cta, they are neither. The innermost loops that hold a wgmma, and those that hold a bulk copy
and its mbarrier (the compiler's loop over the lanes of a copy is not one), have none.
"""

import pathlib
import re
import tempfile

import check
import sass

PRODUCT, COPY, MBARRIER = re.compile("^IGMMA"), re.compile("^UBLKCP"), re.compile("^SYNCS")
SLOW = re.compile(r"^(MEMBAR\.\w+\.(GPU|SYS)|CCTL\.IVALL)")


def slow_fences(code):
    """The opcodes of those in a kernel, a loop each time."""
    flow = sass.Flow(code)
    loops = [(loop.blocks, [x.opcode for i in sorted(loop.blocks) for x in flow.blocks[i]]) for loop in flow.loops()]
    found = []
    for wanted in ((PRODUCT,), (COPY, MBARRIER)):
        fit = [(blocks, code) for blocks, code in loops if all(any(map(each.match, code)) for each in wanted)]
        for blocks, code in fit:
            if not any(other < blocks for other, _ in fit):
                found += filter(SLOW.match, code)
    return found


TEST = """extern "C" __global__ void test(const float* x, float* y, int n) {{
    for (int i = 0; i < n; i++) {{
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 16;" : : "r"(i) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 16, [%0];"
                     : : "r"(i), "l"(x) : "memory");
        {body}
    }}
    __threadfence();
    y[0] = 1;
}}"""
ARRIVE = 'asm volatile("mbarrier.arrive{scope}.shared::cluster.b64 _, [%0];" : : "r"(i) : "memory");'
WAIT = """unsigned done;
        do {{
            asm volatile("{{.reg .pred p; mbarrier.try_wait.parity{scope}.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p;}}"
                         : "=r"(done) : "r"(i) : "memory");
        }} while (done == 0);"""
TEST_CASES = [  # what, body of the loop, what is found first or None
    ("an arrival and a wait in the default scope, a fence after the loop", ARRIVE.format(scope="") + WAIT.format(scope=""), None),
    ("an arrival in the cluster's scope", ARRIVE.format(scope=".release.cluster"), "MEMBAR.ALL.GPU"),
    ("a wait in the cluster's scope", WAIT.format(scope=".acquire.cluster"), "CCTL.IVALL"),
    ("a fence of the device in a loop of copies", "__threadfence();", "MEMBAR.SC.GPU"),
]


def self_test(nvrtc, nvdisasm):
    """Number of cases that were not judged right."""
    missed = 0
    for what, body, expected in TEST_CASES:
        with tempfile.TemporaryDirectory() as scratch:
            source = pathlib.Path(scratch) / "test.cu"
            source.write_text(TEST.format(body=body))
            problems = check.keep((source, "90a", nvrtc, source.parent))
            code = {} if problems else sass.functions(source.parent / "test.90a.cubin", nvdisasm)
            found = slow_fences(code["test"]) if code else problems
            ok = found[:1] == ([expected] if expected else []) and bool(code)
            missed += not ok
            print(f"{'ok' if ok else 'MISSED'}: {what}" + ("" if ok else f": {found}"))
    print(f"fences: {len(TEST_CASES)} cases, {missed} failed")
    return missed
