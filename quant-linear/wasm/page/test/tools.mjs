// Views that need no file: numbers, products, the layout of scales. What they show is held against
// the contract, spelt out here once more, with whole numbers.

import { check, equal } from "./kit.mjs";

const MAGNITUDES = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** Clause C1, ties to the even code. */
function e2m1(x) {
  const size = Math.min(6, Math.abs(x));
  let code = 0;
  for (let i = 1; i < 8; i++) {
    const [near, before] = [Math.abs(MAGNITUDES[i] - size), Math.abs(MAGNITUDES[code] - size)];
    if (near < before || (near === before && i % 2 === 0)) code = i;
  }
  return code + (x < 0 || Object.is(x, -0) ? 8 : 0);
}

/** Every finite e4m3 value, by its byte. */
const E4M3 = Array.from({ length: 127 }, (_, byte) => {
  const [exponent, mantissa] = [byte >> 3, byte & 7];
  return exponent === 0 ? (mantissa / 8) * 2 ** -6 : (1 + mantissa / 8) * 2 ** (exponent - 7);
});

/** The nearest of sorted values, ties to the even index. */
function nearest(values, x) {
  let at = 0;
  values.forEach((value, i) => {
    const [near, before] = [Math.abs(value - x), Math.abs(values[at] - x)];
    if (near < before || (near === before && i % 2 === 0)) at = i;
  });
  return at;
}

const written = (value) => (Object.is(value, -0) ? "−0" : String(value).replace("-", "−").replace("e−", "e-"));

const card = (type) => `[data-type=${type}]`;

/** What a card shows of a type: its value, bits and code, and what lies near. */
async function shown(hands, type) {
  const [value] = await hands.texts(`${card(type)} strong`);
  const [bits] = await hands.texts(`${card(type)} .bits`);
  const near = await hands.value(`[...document.querySelectorAll('${card(type)} tbody tr')].map((r) => r.cells[1].textContent)`);
  const [verdict] = await hands.texts(`${card(type)} > p:last-child`);
  return { value, bits, near, verdict };
}

/** Waits until the cards are those of a number. */
async function take(hands, text, f32) {
  await hands.type("section input", text);
  await hands.until(`document.querySelector(".readout").textContent.startsWith(${JSON.stringify(`In f32: ${f32}`)})`, `${text} is read`);
}

export async function numbers(hands) {
  await hands.open("#view=numbers");
  await hands.until(`document.querySelector('${card("e4m3")} strong').textContent !== ""`);
  const samples = [0.7, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, 7, 100, 0.1, 1e-3, -0.3, -5, -0, 0, 447, 448, 500, 17, 464];
  for (const x of samples) {
    const f32 = Math.fround(x);
    await take(hands, Object.is(x, -0) ? "-0" : String(x), written(f32));
    const small = await shown(hands, "e2m1");
    const code = e2m1(f32);
    equal(small.value, written((code >= 8 ? -1 : 1) * MAGNITUDES[code % 8]), `e2m1 of ${x}`);
    check(small.bits.endsWith(`= 0x${code.toString(16).toUpperCase()}`), `code of ${x}: ${small.bits}`);
    equal(small.bits.split(" ")[0], code.toString(2).padStart(4, "0"), `bits of ${x}`);
    const scale = await shown(hands, "e4m3");
    const byte = nearest(E4M3, Math.abs(f32));
    equal(scale.value, written((f32 < 0 || Object.is(f32, -0) ? -1 : 1) * E4M3[byte]), `e4m3 of ${x}`);
    const power = await shown(hands, "e8m0");
    if (f32 > 0) {
      // The nearest on the linear scale, ties up.
      const low = 2 ** Math.floor(Math.log2(f32));
      const exponent = Math.log2(f32 / low >= 1.5 ? 2 * low : low);
      equal(power.bits.split(" ")[0], (exponent + 127).toString(2).padStart(8, "0"), `e8m0 of ${x}`);
    }
  }
  await take(hands, "0.75", "0.75");
  const tie = await shown(hands, "e2m1");
  equal([tie.value, tie.near], ["1", ["0.5", "0.75", "1.25", "1.5"]], "0.75 and what is near it");
  check(tie.verdict.includes("tie"), `0.75 is a tie: ${tie.verdict}`);
  // What is near is a step to it, by keyboard as well.
  await hands.value(`document.querySelector('${card("e2m1")} tbody tr:last-child button').focus()`);
  await hands.enter();
  await hands.until(`document.querySelector('${card("e2m1")} strong').textContent === "1.5"`, "a step to the value above");
  await hands.address("x", "1.5");
  equal(await hands.value(`document.querySelector('${card("e2m1")} tbody tr:last-child').contains(document.activeElement)`), true, "and the focus stays");
  // Every code is there, and is what its value becomes.
  const codes = await hands.texts(".codes button");
  const expected = Array.from({ length: 16 }, (_, code) => {
    const value = written((code >= 8 ? -1 : 1) * MAGNITUDES[code % 8]);
    return `${value}${code.toString(2).padStart(4, "0")}`;
  });
  equal(codes, expected, "codes of e2m1");
  for (const code of [0, 5, 8, 15]) {
    await hands.value(`document.querySelectorAll(".codes button")[${code}].click()`);
    await hands.until(`document.querySelectorAll(".codes button")[${code}].ariaPressed === "true"`, `code ${code} is taken`);
  }
  for (const [text, value] of [["nan", "NaN"], ["inf", "∞"], ["2^-3", "0.125"]]) await take(hands, text, value);
  await hands.type("section input", "three");
  check((await hands.texts(".readout.wrong"))[0]?.includes("three"), "a word is refused by name");
  await hands.open("#view=numbers&x=2.5");
  await hands.until(`document.querySelector('${card("e2m1")} strong').textContent === "2"`, "a shared number: a tie, to even");
}

/** A decimal number in full, in units of 2^-200. */
function exact(text) {
  const found = /^([-−]?)(\d+)(?:\.(\d+))?(?:e([+-]?\d+))?$/.exec(text);
  check(found !== null, `“${text}” is an exact decimal number`);
  const [, sign, whole, part = "", exponent = "0"] = found;
  const power = Number(exponent) - part.length;
  const digits = BigInt(whole + part) << 200n;
  const value = power >= 0 ? digits * 10n ** BigInt(power) : digits / 10n ** BigInt(-power);
  return sign === "" ? value : -value;
}

/** The same of a number that is a sum of few powers of two. */
function units(x) {
  let [value, power] = [x, 0n];
  while (!Number.isInteger(value)) [value, power] = [value * 2, power + 1n];
  return (BigInt(value) << 200n) >> power;
}

export async function product(hands) {
  const cases = [
    ["mxfp4", "1, 0.3, -2.5, 6, 0.01", "0.5, 3, 1.1, -0.75, 100"],
    ["nvfp4", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17", "0.1 0.2 0.3 0.4 -0.5 0.6 0.7 0.8 0.9 1 2 3 4 5 6 7 8"],
    ["mxfp4", `1e8 1 -1e8 ${"0 ".repeat(29)}1`, `1 1 1 ${"0 ".repeat(29)}1`],
  ];
  for (const [format, a, b] of cases) {
    await hands.open(`#${new URLSearchParams({ view: "product", format, a, b })}`);
    await hands.until(`document.querySelectorAll("tbody tr").length > 0`, "steps");
    const steps = await hands.table("Steps");
    equal(steps.length, a.trim().split(/[ ,]+/).length, "a line for each number");
    let sum = 0n;
    for (const [, , left, leftScale, , right, rightScale, text, total] of steps) {
      const parts = [left, leftScale, right, rightScale].map((each) => Number(each.replace("−", "-")));
      equal(exact(text), units(parts.reduce((x, y) => x * y)), `${text} is the product of ${parts}`);
      sum += exact(text);
      equal(exact(total), sum, `the sum up to ${text}`);
    }
    const cards = await hands.facts(".results");
    equal(exact(cards["Exact sum"].replace(/of the products.*/, "")), sum, "the exact sum");
    const rounded = Number(cards["Rounded once"].replace("to f32", "").replace("−", "-"));
    // Sums of these sizes are exact in f64, so one rounding is left.
    equal(rounded, Math.fround(Number(sum) / 2 ** 200), "and its one rounding");
  }
  // The sum in f32 is another one where a large product comes and goes.
  await hands.press("button", "Where f32 loses");
  await hands.until(`document.querySelectorAll("tbody tr").length === 65`, "three groups");
  const lost = await hands.facts(".results");
  check(!lost["Exact sum"].startsWith("0") && lost["Added in f32, in order"].startsWith("0"), `f32 loses: ${JSON.stringify(lost)}`);
  await hands.type("section input", "1, 2");
  await hands.until(`document.querySelector("[role=alert]").textContent !== ""`, "lengths that differ are refused");
  check((await hands.texts("[role=alert]"))[0].includes("2 numbers"), "and said");
}

/** Clause C7. */
function offset(rows, cols, row, col) {
  const tile = Math.floor(row / 128) * Math.ceil(cols / 4) + Math.floor(col / 4);
  return 512 * tile + (row % 32) * 16 + Math.floor((row % 128) / 32) * 4 + (col % 4);
}

export async function swizzle(hands) {
  for (const [rows, cols] of [[128, 4], [130, 5], [1, 1], [256, 12]]) {
    await hands.open(`#view=swizzle&rows=${rows}&cols=${cols}`);
    await hands.until(`document.querySelector(".readout").textContent !== ""`);
    for (const [row, col] of [[0, 0], [rows - 1, cols - 1], [Math.floor(rows / 2), Math.floor(cols / 3)], [Math.min(37, rows - 1), 0]]) {
      const at = offset(rows, cols, row, col);
      const says = `row ${row}, column ${col} is at byte ${at} (0x${at.toString(16)})`;
      // From the matrix to memory, and back.
      await point(hands, 0, rows, cols, row, col);
      equal((await hands.texts(".readout"))[0], says, "from the matrix");
      const lines = (Math.ceil(rows / 128) * Math.ceil(cols / 4) * 512) / 16;
      await point(hands, 1, lines, 16, Math.floor(at / 16), at % 16);
      equal((await hands.texts(".readout"))[0], says, "from memory");
      await hands.address("row", String(row));
    }
  }
  await hands.open("#view=swizzle&rows=130&cols=5&row=129&col=4");
  await hands.until(`document.querySelector(".readout").textContent.startsWith("row 129, column 4")`, "a shared cell");
  // However often the pointer moves, the address changes a few times: browsers allow no more.
  await hands.value(`(() => {
    window.written = 0;
    const write = history.replaceState.bind(history);
    history.replaceState = (...all) => (window.written++, write(...all));
  })()`);
  for (let i = 0; i < 60; i++) await point(hands, 0, 130, 5, i, i % 5);
  await hands.address("row", "59");
  const written = await hands.value(`window.written`);
  check(written > 0 && written < 30, `the address is written ${written} times for 60 cells`);
  // Another view, and back to this one as it was left.
  await hands.press("nav a", "Numbers");
  await hands.until(`document.querySelector("[data-type]") !== null`, "another view");
  await hands.press("nav a", "Scale layout");
  await hands.address("row", "59");
  await hands.until(`document.querySelector(".readout").textContent.startsWith("row 59, column 4")`, "as it was left");
  await point(hands, 1, 256, 16, 255, 15);
  check((await hands.texts(".readout"))[0].includes("padding"), "padding is said");
  await hands.value(`document.querySelector(".board").focus()`);
  await hands.page.key("ArrowUp");
  check((await hands.texts(".readout"))[0].startsWith("row 58, column 4"), "by keyboard");
  await hands.type("input[type=number]", "0");
  check((await hands.texts("[role=alert]"))[0].includes("1 to"), "no rows are refused");
}

/** Points at a cell of a board. */
async function point(hands, board, rows, cols, row, col) {
  const canvas = `document.querySelectorAll(".board")[${board}]`;
  await hands.value(`${canvas}.scrollIntoView({ block: "center" })`);
  await hands.value(`(() => {
    const box = ${canvas}.getBoundingClientRect();
    const at = { clientX: box.left + (box.width * (${col} + 0.5)) / ${cols}, clientY: box.top + (box.height * (${row} + 0.5)) / ${rows} };
    ${canvas}.dispatchEvent(new PointerEvent("pointermove", { ...at, bubbles: true }));
  })()`);
}
