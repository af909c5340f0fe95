// The page that `fp4 report` writes: its numbers are in the page.

import { parse } from "./data";
import { complain, show } from "./show";

const place = document.getElementById("page") ?? document.body;
try {
  show(parse(document.getElementById("fp4-report")?.textContent ?? ""), place);
} catch (error) {
  complain(error, place);
  throw error;
}
