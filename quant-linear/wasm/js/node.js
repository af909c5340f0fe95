// exact-fp4 in node: as index.js, with files of the system.
import { openSync, closeSync, fstatSync, readSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { basename } from "node:path";

import { setReader } from "./index.js";

export * from "./index.js";

setReader((url) => (url.protocol === "file:" ? readFile(url) : fetch(url)));

/** A file, read by position; `name` is what it is called among others. */
export function fileSource(path, name = basename(path)) {
  const file = openSync(path, "r");
  const { size } = fstatSync(file);
  return {
    name,
    size,
    read(position, length) {
      const bytes = new Uint8Array(length);
      let done = 0;
      while (done < length) {
        const more = readSync(file, bytes, done, length - done, position + done);
        if (more === 0) break;
        done += more;
      }
      return bytes.subarray(0, done);
    },
    close: () => closeSync(file),
  };
}
