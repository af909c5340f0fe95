// A plain file server, on this machine alone: node serve.mjs FOLDER [PORT]
// It knows the types of the page's files, and no other path than theirs.

import { readFileSync, readdirSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const TYPES = { html: "text/html", js: "text/javascript", css: "text/css", wasm: "application/wasm" };

/** Serves the files of a folder as they are now; gives the address, and how to stop. */
export async function serve(folder, port = 0) {
  const names = readdirSync(folder, { recursive: true }).filter((name) => statSync(join(folder, name)).isFile());
  const files = new Map(names.map((name) => [`/${name}`, readFileSync(join(folder, name))]));
  files.set("/", files.get("/index.html"));
  /** What was asked for and is not there. */
  const missed = [];
  /** What is there and is not given for now. */
  const refused = new Set();
  const server = createServer(({ url }, response) => {
    // A path, and no address: it may begin with two slashes.
    const [pathname] = url.split("?");
    if (refused.has(pathname)) return response.writeHead(404).end();
    const file = files.get(pathname);
    const type = pathname === "/" ? TYPES.html : TYPES[pathname.split(".").at(-1)];
    if (file === undefined) {
      missed.push(pathname);
      response.writeHead(404).end();
    } else response.writeHead(200, { "content-type": type ?? "application/octet-stream" }).end(file);
  });
  await new Promise((done) => server.listen(port, "127.0.0.1", done));
  return { url: `http://127.0.0.1:${server.address().port}/`, missed, refused, stop: () => server.close() };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await serve(process.argv[2], Number(process.argv[3] ?? 8000));
  console.log(url);
}
