// The files that are looked at: A, and B to compare it with. Dropped or chosen, opened by the
// worker; what is wrong with one is said beside its name.

import { button, element } from "report/dom";
import { bytes, counted, printable } from "report/text";
import type { Contents } from "exact-fp4";
import type { Opened, Slot } from "./calls";
import { Cancelled, type Client } from "./client";
import type { Work } from "./work";

/** What a slot holds. */
export interface Held {
  name: string;
  opened: Opened;
  /** Another one for other files, the same ones opened again included. */
  id: number;
}

const TITLES: Record<Slot, string> = { a: "A", b: "B, to compare" };
/** What belongs to a checkpoint; a folder's other files may be of any size. */
const OURS = /\.(safetensors|gguf|json)$/i;

export class Slots {
  readonly root = element("div", { class: "slots" });
  readonly #held = new Map<Slot, Held>();
  readonly #boxes = new Map<Slot, Box>();
  readonly #told: ((slot: Slot) => void)[] = [];
  readonly #client: Client;
  readonly #work: Work;
  #next = 1;
  /** How often each slot was given something, or closed: what was given before is out of date. */
  readonly #turns: Record<Slot, number> = { a: 0, b: 0 };
  /** The slot whose files are being opened, and the end of all that were given. */
  #opening: Slot | null = null;
  #queue: Promise<void> = Promise.resolve();

  constructor(client: Client, work: Work) {
    this.#client = client;
    this.#work = work;
    for (const slot of ["a", "b"] as const) {
      const box = new Box(TITLES[slot], (files) => void this.open(slot, files), () => void this.close(slot));
      this.#boxes.set(slot, box);
      this.root.append(box.root);
    }
    // Beside the boxes: to the first that is empty, and never away from this page.
    addEventListener("dragover", (event) => {
      if (!isForField(event)) event.preventDefault();
    });
    addEventListener("drop", (event) => {
      if (!isForField(event)) event.preventDefault();
      if (!hasFiles(event)) return;
      const slot = this.#held.has("a") && !this.#held.has("b") ? "b" : "a";
      void dropped(event).then((files) => this.open(slot, files), (why) => this.#boxes.get(slot)?.fail(LOST, text(why)));
    });
  }

  get(slot: Slot): Held | undefined {
    return this.#held.get(slot);
  }

  /** Calls after every change. */
  follow(tell: (slot: Slot) => void): void {
    this.#told.push(tell);
  }

  /** Opens files, after those that were given before; what was given to the same slot is given up. */
  open(slot: Slot, all: File[]): Promise<void> {
    const mine = ++this.#turns[slot];
    if (this.#opening === slot) this.#work.cancel();
    this.#boxes.get(slot)?.wait(named(all), all);
    this.#queue = this.#queue.then(() => this.#open(slot, all, () => mine === this.#turns[slot]));
    return this.#queue;
  }

  async #open(slot: Slot, all: File[], current: () => boolean): Promise<void> {
    if (!current()) return;
    const files = all.length > 1 ? all.filter((file) => OURS.test(file.name)) : all;
    const box = this.#boxes.get(slot);
    const name = named(all);
    this.#held.delete(slot);
    if (files.length === 0) {
      box?.fail(name, "no .safetensors or .gguf file is among what was given; give one, or the files of a folder");
      this.#tell(slot);
      return;
    }
    box?.wait(name, files);
    this.#opening = slot;
    try {
      const opened = await this.#work.run(`Opening ${printable(name)}`, (progress) => this.#client.open(slot, files, progress));
      if (!current()) return;
      this.#held.set(slot, { name, opened, id: this.#next++ });
      box?.hold(name, opened);
    } catch (error) {
      if (!current()) return;
      box?.fail(name, error instanceof Cancelled ? "cancelled; give it again" : text(error));
    } finally {
      this.#opening = null;
    }
    this.#tell(slot);
  }

  async close(slot: Slot): Promise<void> {
    this.#turns[slot] += 1;
    if (this.#opening === slot) this.#work.cancel();
    this.#held.delete(slot);
    this.#boxes.get(slot)?.clear();
    this.#tell(slot);
    await this.#client.close(slot).catch(() => {});
  }

  #tell(slot: Slot): void {
    for (const tell of this.#told) tell(slot);
  }
}

/** What was dropped, where a browser cannot say. */
const LOST = "What was dropped";

const text = (error: unknown): string => (error instanceof Error ? error.message : String(error));

const hasFiles = (event: DragEvent): boolean => event.dataTransfer?.types.includes("Files") ?? false;

/** Text that is dragged to a field is the field's. */
const isForField = (event: DragEvent): boolean => !hasFiles(event) && event.target instanceof HTMLInputElement;

/** What files are called together: the one, or the folder. */
function named(files: File[]): string {
  const [first] = files;
  if (first === undefined) return "nothing";
  const folder = first.webkitRelativePath.split("/")[0];
  if (folder) return folder;
  const models = files.filter((file) => /\.(safetensors|gguf)$/i.test(file.name));
  const main = models[0] ?? first;
  return models.length > 1 ? `${main.name} and ${models.length - 1} more` : main.name;
}

/** The files of a drop; of a folder those that lie in it, not those of folders inside. */
async function dropped(event: DragEvent): Promise<File[]> {
  // Both lists are gone once this returns for the first time.
  const items = [...(event.dataTransfer?.items ?? [])];
  const plain = [...(event.dataTransfer?.files ?? [])];
  const entries = items.map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  if (!entries.some((entry) => entry.isDirectory)) return plain;
  const found: FileSystemEntry[] = [];
  for (const entry of entries) {
    if (!entry.isDirectory) found.push(entry);
    else found.push(...(await inside(entry as FileSystemDirectoryEntry)));
  }
  const files = found.filter((entry): entry is FileSystemFileEntry => entry.isFile);
  return Promise.all(files.map((entry) => new Promise<File>((done, failed) => entry.file(done, failed))));
}

/** A folder's entries, which come in parts. */
async function inside(folder: FileSystemDirectoryEntry): Promise<FileSystemEntry[]> {
  const reader = folder.createReader();
  const found: FileSystemEntry[] = [];
  for (;;) {
    const part = await new Promise<FileSystemEntry[]>((done, failed) => reader.readEntries(done, failed));
    if (part.length === 0) return found;
    found.push(...part);
  }
}

/** One slot: where files are dropped, and what became of them. */
class Box {
  readonly root: HTMLElement;
  readonly #name = element("strong", { class: "file" });
  readonly #said = element("p", { class: "said", "aria-live": "polite" });
  readonly #close: HTMLButtonElement;

  constructor(title: string, given: (files: File[]) => void, closed: () => void) {
    this.#close = button("Close", `Close ${title}`, closed);
    const choose = (text: string, folder: boolean): HTMLElement => {
      const input = element("input", { type: "file", class: "hidden", multiple: true, webkitdirectory: folder });
      if (!folder) input.accept = ".safetensors,.gguf,.json";
      input.addEventListener("change", () => {
        if (input.files?.length) given([...input.files]);
        // The same again is a change as well.
        input.value = "";
      });
      return element("label", { class: "press" }, text, element("span", { class: "hidden" }, ` for ${title}`), input);
    };
    const controls = element("div", { class: "controls" }, choose("Choose files", false), choose("Choose a folder", true), this.#close);
    this.root = element("div", { class: "slot", role: "group", "aria-label": title });
    this.root.append(element("p", { class: "head" }, element("span", { class: "tag" }, title), this.#name), this.#said, controls);
    this.root.addEventListener("dragover", (event) => this.root.classList.toggle("over", hasFiles(event)));
    for (const end of ["dragleave", "drop"] as const) {
      this.root.addEventListener(end, () => this.root.classList.remove("over"));
    }
    this.root.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      event.stopPropagation();
      void dropped(event).then(given, (why) => this.fail(LOST, text(why)));
    });
    this.clear();
  }

  clear(): void {
    this.#say("", "Drop a .safetensors or .gguf file here, or the files of a folder. They stay on this computer.", false);
    this.#close.disabled = true;
  }

  wait(name: string, files: File[]): void {
    const size = files.reduce((sum, file) => sum + file.size, 0);
    this.#say(name, `${bytes(size)}, opening`, false);
    this.#close.disabled = false;
  }

  hold(name: string, { files, tensors, layers }: Contents): void {
    const size = files.reduce((sum, file) => sum + file.bytes, 0);
    const many = files.length > 1 ? `${counted(files.length, "file")}, ` : "";
    this.#say(name, `${many}${bytes(size)}, ${counted(tensors.length, "tensor")}, ${counted(layers.length, "quantized layer")}`, false);
    this.#close.disabled = false;
  }

  fail(name: string, why: string): void {
    this.#say(name, `Cannot be read: ${why}`, true);
    this.#close.disabled = false;
  }

  #say(name: string, said: string, wrong: boolean): void {
    this.#name.textContent = printable(name);
    this.#said.textContent = printable(said);
    this.root.classList.toggle("wrong", wrong);
  }
}
