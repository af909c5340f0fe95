// Chromium without a window, spoken to over two pipes: one NUL-ended JSON message after the other.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** What a page may take to answer. */
const PATIENCE = 20_000;

export class Browser {
  #next = 1;
  #waiting = new Map();
  #listeners = [];
  #profile = mkdtempSync(join(tmpdir(), "fp4-look-"));
  #process;
  #ended;

  constructor(program) {
    const args = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
      "--no-first-run", "--disable-background-networking", "--disable-component-update",
      "--hide-scrollbars", "--remote-debugging-pipe", `--user-data-dir=${this.#profile}`];
    this.#process = spawn(program, args, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
    this.#ended = new Promise((resolve) => this.#process.on("close", resolve));
    this.#process.on("error", (error) => this.#fail(error));
    this.#process.on("close", () => this.#fail(new Error(`${program} has ended`)));
    let rest = Buffer.alloc(0);
    this.#process.stdio[4].on("data", (data) => {
      rest = Buffer.concat([rest, data]);
      for (let end = rest.indexOf(0); end >= 0; end = rest.indexOf(0)) {
        this.#receive(JSON.parse(rest.subarray(0, end).toString()));
        rest = rest.subarray(end + 1);
      }
    });
  }

  #fail(error) {
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }

  #receive(message) {
    const waiting = this.#waiting.get(message.id);
    this.#waiting.delete(message.id);
    if (waiting === undefined) for (const listen of this.#listeners) listen(message);
    else if (message.error) waiting.reject(new Error(message.error.message));
    else waiting.resolve(message.result);
  }

  /** Asks the browser, or a page by its session. */
  send(method, params = {}, sessionId = undefined) {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error(`no answer to ${method}`)), PATIENCE);
      const settle = (done) => (value) => (clearTimeout(late), done(value));
      this.#waiting.set(id, { resolve: settle(resolve), reject: settle(reject) });
      this.#process.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    });
  }

  /** A new, empty page. */
  async page() {
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    const page = new Page(this, sessionId);
    this.#listeners.push((message) => page.owns(message.sessionId) && page.hear(message));
    for (const domain of ["Page", "Runtime", "Log", "Network"]) await page.send(`${domain}.enable`);
    // Workers as well, from their first request on.
    await page.send("Target.setAutoAttach", { autoAttach: true, waitForDebuggerOnStart: true, flatten: true });
    return page;
  }

  async close() {
    await this.send("Browser.close").catch(() => {});
    await this.#ended;
    rmSync(this.#profile, { recursive: true, force: true });
  }
}

export class Page {
  /** What went wrong in the page: errors, messages to the console, refusals by its policy. */
  faults = [];
  /** What the page and its workers asked for, itself included. */
  requests = [];
  /** Workers that it started. */
  workers = 0;
  #browser;
  #session;
  /** Its own and those of its workers. */
  #sessions;

  constructor(browser, session) {
    this.#browser = browser;
    this.#session = session;
    this.#sessions = new Set([session]);
  }

  send(method, params) {
    return this.#browser.send(method, params, this.#session);
  }

  /** Asks the browser, not the page. */
  all(method, params) {
    return this.#browser.send(method, params);
  }

  /** Listens to a worker of the page, and lets it begin. */
  async #join(sessionId) {
    this.#sessions.add(sessionId);
    await this.#browser.send("Network.enable", {}, sessionId);
    await this.#browser.send("Runtime.runIfWaitingForDebugger", {}, sessionId);
  }

  /** Is a message of this page, or of a worker of it? */
  owns(sessionId) {
    return this.#sessions.has(sessionId);
  }

  hear({ method, params }) {
    if (method === "Target.attachedToTarget") {
      // One that has ended by now has nothing to tell.
      this.workers += 1;
      this.#join(params.sessionId).catch(() => {});
    }
    if (method === "Network.requestWillBeSent") this.requests.push(params.request.url);
    if (method === "Runtime.exceptionThrown") {
      const { text, exception } = params.exceptionDetails;
      this.faults.push(`${text} ${exception?.description ?? ""}`);
    }
    if (method === "Runtime.consoleAPICalled") this.faults.push(`console: ${JSON.stringify(params.args)}`);
    if (method === "Log.entryAdded") this.faults.push(`log: ${params.entry.text}`);
  }

  /** The value of an expression in the page. */
  async value(expression) {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", {
      expression,
      awaitPromise: true,
      returnByValue: true,
    });
    if (exceptionDetails) {
      throw new Error(`${exceptionDetails.exception?.description ?? exceptionDetails.text} in ${expression}`);
    }
    return result.value;
  }

  /** Sets size and colour scheme, for what is opened next as well. */
  async view(width, height, scheme) {
    await this.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: false });
    const features = [{ name: "prefers-color-scheme", value: scheme }];
    await this.send("Emulation.setEmulatedMedia", { features });
    await this.settled();
  }

  async open(url) {
    await this.send("Page.navigate", { url });
    const end = Date.now() + PATIENCE;
    while (!(await this.value(`document.readyState === "complete" && location.href === ${JSON.stringify(url)}`))) {
      if (Date.now() > end) throw new Error(`${url} does not load`);
    }
    await this.settled();
  }

  /** Waits until what was asked of the page has been drawn. */
  async settled() {
    const frame = "new Promise((done) => requestAnimationFrame(done))";
    for (let i = 0; i < 3; i++) await this.value(`${frame}.then(() => null)`);
  }

  async key(key) {
    for (const type of ["keyDown", "keyUp"]) await this.send("Input.dispatchKeyEvent", { type, key });
    await this.settled();
  }

  /** The whole page, or the part that is in view, as PNG. */
  async picture(whole) {
    const { data } = await this.send("Page.captureScreenshot", { format: "png", captureBeyondViewport: whole });
    return Buffer.from(data, "base64");
  }
}
