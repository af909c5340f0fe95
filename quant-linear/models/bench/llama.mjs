// Tokens a second of llama.cpp on the CPU, as node-llama-cpp carries it, and its memory:
//     node llama.mjs MODEL THREADS PREFILL DECODE
// One line of JSON, as `decoder bench --json` prints. The second of two runs is told.
import { readFileSync } from "node:fs";
import { getLlama } from "node-llama-cpp";

const [path, ...numbers] = process.argv.slice(2);
const [threads, prefill, decode] = numbers.map(Number);
const llama = await getLlama({ gpu: false, build: "never", progressLogs: false, logLevel: "error" });
const model = await llama.loadModel({ modelPath: path, gpuLayers: 0 });
const context = await model.createContext({
    contextSize: prefill + decode + 8,
    batchSize: prefill,
    threads: { ideal: threads, min: threads },
});
const sequence = context.getSequence();
const ids = Array.from({ length: prefill }, (_, i) => (i * 7919 + 13) % 49152);

async function once() {
    await sequence.clearHistory();
    const start = performance.now();
    await sequence.evaluateWithoutGeneratingNewTokens(ids.slice(0, -1));
    const middle = performance.now();
    let count = 0;
    for await (const _ of sequence.evaluate(ids.slice(-1), { temperature: 0, yieldEogToken: true })) {
        count += 1;
        if (count >= decode) break;
    }
    const end = performance.now();
    const rate = (tokens, from, to) => tokens / ((to - from) / 1000);
    return { prefill: rate(prefill - 1, start, middle), decode: rate(count, middle, end) };
}

await once();
const run = await once();
const status = readFileSync("/proc/self/status", "utf8");
const bytes = key => Number(status.match(new RegExp(`${key}:\\s+(\\d+) kB`))[1]) * 1024;
const memory = { resident: bytes("VmRSS"), peak: bytes("VmHWM") };
console.log(JSON.stringify({ encoding: "llama.cpp", threads: context.currentThreads, ...run, ...memory }));
process.exit(0);
