// What the views of the page have in common.

import type { Address } from "./address";
import type { Client } from "./client";
import type { Slots } from "./slots";
import type { Work } from "./work";

export interface App {
  address: Address;
  /** The worker that has the files. */
  files: Client;
  /** Another one, for what takes no time: it answers while the first computes. */
  numbers: Client;
  work: Work;
  slots: Slots;
}

export interface View {
  root: HTMLElement;
  /** Shows what the address says. */
  show(): void;
}
