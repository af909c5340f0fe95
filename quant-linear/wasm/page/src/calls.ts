// What the page asks of a worker, and what it is given: plain data, as it passes between them. What
// it means is told in the types of the package.

import type {
  Choice,
  Code,
  Contents,
  DotSteps,
  Format,
  NumberAbout,
  NumberType,
  RuleAbout,
  TransformAbout,
  Trial,
  Verification,
  View,
} from "exact-fp4";
import type { Report } from "report/data";

export type Slot = "a" | "b";

/** All scale rules and transforms. */
export interface Kinds {
  rules: RuleAbout[];
  transforms: TransformAbout[];
}

/** What a checkpoint's headers say, and how its tensors can be tried. */
export type Opened = Contents & { kinds: Kinds };

export interface Calls {
  open: { given: { slot: Slot; files: File[] }; gives: Opened };
  close: { given: { slot: Slot }; gives: null };
  /** Of A; against B, or of A alone. */
  report: { given: { b: boolean }; gives: Report };
  verify: { given: { slot: Slot }; gives: Verification };
  /** Of A; its error against B, if that is wanted. */
  depth: { given: { name: string; b: boolean }; gives: View };
  /** One matrix of a tensor of A. */
  trial: { given: { name: string; choice: Required<Choice>; matrix: number }; gives: Trial };
  values: { given: { name: string; row: number; col: number; rows: number; cols: number }; gives: Float32Array };
  codes: { given: { type: NumberType }; gives: Code[] };
  explain: { given: { x: number; type: NumberType }; gives: NumberAbout };
  product: { given: { a: number[]; b: number[]; format: Format }; gives: DotSteps };
  swizzle: { given: { rows: number; cols: number }; gives: { offsets: Uint32Array<ArrayBuffer>; bytes: number } };
}

export interface Message {
  id: number;
  op: keyof Calls;
  given: Calls[keyof Calls]["given"];
  /** Is the caller to be told how far it is? */
  told: boolean;
}

export type Answer =
  | { id: number; value: unknown }
  /** `ended`: the instance cannot be used any more. */
  | { id: number; error: string; ended: boolean }
  | { id: number; progress: [done: number, total: number, name: string] };
