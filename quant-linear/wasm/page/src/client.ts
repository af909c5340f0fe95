// The page's side of a worker: calls as promises, with progress, one after the other. Cancelling
// ends the worker; the next call starts another, which opens the same files again.

import type { Answer, Calls, Message, Slot } from "./calls";

/** Told how far a call has come. */
export type Progress = (done: number, total: number, name: string) => void;

/** The call was given up, by who uses the page or for another one. */
export class Cancelled extends Error {
  constructor() {
    super("cancelled");
  }
}

interface Waiting {
  resolve: (value: never) => void;
  reject: (why: Error) => void;
  progress: Progress | undefined;
}

export class Client {
  #worker: Worker | null = null;
  #next = 1;
  #waiting = new Map<number, Waiting>();
  /** What the worker has open, to be opened again. */
  #opened = new Map<Slot, File[]>();

  get busy(): boolean {
    return this.#waiting.size > 0;
  }

  call<K extends keyof Calls>(
    op: K,
    given: Calls[K]["given"],
    progress?: Progress,
  ): Promise<Calls[K]["gives"]> {
    if (this.#worker === null) {
      this.#worker = this.#start();
      // Their failures are those of the calls that need them.
      for (const [slot, files] of this.#opened) this.#send("open", { slot, files }).catch(() => {});
    }
    return this.#send(op, given, progress);
  }

  /** Opens files, also in a worker that comes after this one. */
  async open(slot: Slot, files: File[], progress?: Progress): Promise<Calls["open"]["gives"]> {
    this.#opened.delete(slot);
    const opened = await this.call("open", { slot, files }, progress);
    this.#opened.set(slot, files);
    return opened;
  }

  async close(slot: Slot): Promise<void> {
    this.#opened.delete(slot);
    if (this.#worker !== null) await this.call("close", { slot });
  }

  /** Gives up what is being computed. */
  cancel(): void {
    this.#end(new Cancelled());
  }

  #send<K extends keyof Calls>(
    op: K,
    given: Calls[K]["given"],
    progress?: Progress,
  ): Promise<Calls[K]["gives"]> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, progress });
      const message: Message = { id, op, given, told: progress !== undefined };
      this.#worker?.postMessage(message);
    });
  }

  #start(): Worker {
    const worker = new Worker("worker.js", { type: "module" });
    worker.addEventListener("message", ({ data }: MessageEvent<Answer>) => {
      if (worker === this.#worker) this.#receive(data);
    });
    // It cannot be loaded, or ended in a way that it could not report.
    worker.addEventListener("error", (event) => {
      event.preventDefault();
      // One that was ended has nothing to say about its successor.
      if (worker !== this.#worker) return;
      this.#end(new Error(event.message || "worker.js cannot be loaded; is it beside the page?"));
    });
    return worker;
  }

  #receive(answer: Answer): void {
    const waiting = this.#waiting.get(answer.id);
    if ("progress" in answer) {
      waiting?.progress?.(...answer.progress);
      return;
    }
    this.#waiting.delete(answer.id);
    if ("error" in answer) waiting?.reject(new Error(answer.error));
    else waiting?.resolve(answer.value as never);
    // What trapped may have left the instance in any state.
    if ("error" in answer && answer.ended) this.#end(new Error(answer.error));
  }

  #end(why: Error): void {
    this.#worker?.terminate();
    this.#worker = null;
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const { reject } of waiting) reject(why);
  }
}
