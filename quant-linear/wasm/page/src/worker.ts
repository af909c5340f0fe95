// The worker: it holds the WASM package and what is open, and reads files by slices. One call after
// the other, each answered with plain data; to be cancelled it is ended.

import { type Checkpoint, type DotSteps, type Fp4, blobSource, load } from "exact-fp4";
import type { Answer, Calls, Message, Slot } from "./calls";

type Tell = (done: number, total: number, name: string) => void;
type Ops = {
  [K in keyof Calls]: (fp4: Fp4, given: Calls[K]["given"], tell: Tell) => Calls[K]["gives"];
};

/** Milliseconds between two tellings. */
const PAUSE = 60;

/** What the package says when its instance cannot be used any more. */
const STOPPED = /^exact-fp4 (stopped|has a bug)/;

/** A multiple of the groups of both formats. */
const GROUP = 32;

const open = new Map<Slot, Checkpoint>();

function held(slot: Slot): Checkpoint {
  const found = open.get(slot);
  if (found === undefined) throw new Error(`${slot.toUpperCase()} is not open; give its file again`);
  return found;
}

const ops: Ops = {
  open(fp4, { slot, files }) {
    open.get(slot)?.free();
    open.delete(slot);
    const checkpoint = fp4.open(files.map((file) => blobSource(file.webkitRelativePath || file.name, file)));
    open.set(slot, checkpoint);
    const { rules, transforms } = fp4;
    return { ...checkpoint.contents(), kinds: { rules, transforms } };
  },
  close(_, { slot }) {
    open.get(slot)?.free();
    open.delete(slot);
    return null;
  },
  report: (fp4, { b }, tell) => fp4.report(held("a"), b ? held("b") : undefined, tell),
  verify: (_, { slot }, tell) => held(slot).verify(tell),
  depth: (_, { name, b }, tell) => held("a").layer(name, b ? { against: held("b") } : {}, tell),
  trial(_, { name, choice, matrix }, tell) {
    const [trial] = held("a").trial(name, [choice], { matrix }, tell);
    if (trial === undefined) throw new Error("a trial gave nothing; please report it");
    return trial;
  },
  values: (_, { name, row, col, rows, cols }) => held("a").values(name, row, col, rows, cols),
  codes: (fp4, { type }) => fp4.codes(type),
  explain: (fp4, { x, type }) => fp4.explain(x, type),
  product,
  swizzle(fp4, { rows, cols }) {
    const offsets = new Uint32Array(rows * cols);
    for (let row = 0; row < rows; row++) {
      for (let col = 0; col < cols; col++) offsets[row * cols + col] = fp4.swizzleOffset(rows, cols, row, col);
    }
    return { offsets, bytes: fp4.swizzle(new Uint8Array(rows * cols), rows, cols).length };
  },
};

/** A product of two vectors, padded with zeros to a whole group. */
function product(fp4: Fp4, { a, b, format }: Calls["product"]["given"]): DotSteps {
  const quantized = (vector: number[]) => {
    const padded = new Float32Array(Math.max(1, Math.ceil(vector.length / GROUP)) * GROUP);
    padded.set(vector);
    return fp4.quantize(padded, 1, padded.length, { format });
  };
  return fp4.dotSteps(quantized(a), quantized(b));
}

let ready: Promise<Fp4> | null = null;

/** Loads the package; what failed is tried again by the next call. */
async function loaded(): Promise<Fp4> {
  try {
    return await load({ base: new URL(".", self.location.href), simd: false });
  } catch (error) {
    ready = null;
    throw error;
  }
}

self.addEventListener("message", async ({ data }: MessageEvent<Message>) => {
  const { id, op, given, told } = data;
  const answer = (message: Answer) => self.postMessage(message);
  let last = 0;
  const tell: Tell = (done, total, name) => {
    const now = performance.now();
    if (!told || now - last < PAUSE) return;
    last = now;
    answer({ id, progress: [done, total, name] });
  };
  try {
    ready ??= loaded();
    const fp4 = await ready;
    answer({ id, value: (ops[op] as Ops[typeof op] & ((...all: unknown[]) => unknown))(fp4, given as never, tell) });
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    answer({ id, error: text, ended: STOPPED.test(text) });
  }
});
