// Times llama.cpp through node-llama-cpp, for bench/llama_cpp.ts, which starts it under Node with UV_THREADPOOL_SIZE=1: with
// Node's pool of 4 on two cores its decode is several times slower. Prints one JSON object.
//
// node llama_cpp.mjs <folder with node_modules> <model.gguf> <contexts, with commas> <tokens to decode> <threads> <token ids, JSON file>
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";

const [folder, path, contextList, count, threads, idsFile] = process.argv.slice(2);
const resolve = createRequire(join(folder, "package.json")).resolve;
const { getLlama } = await import(pathToFileURL(resolve("node-llama-cpp")).href);
const contexts = contextList.split(",").map(Number), ids = JSON.parse(readFileSync(idsFile, "utf8"));

const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: Number(threads) });
const model = await llama.loadModel({ modelPath: path });
const context = await model.createContext({
  contextSize: contexts.at(-1) + contexts.length * (Number(count) + 8),
  batchSize: 512,
  threads: { ideal: Number(threads), min: Number(threads) },
  flashAttention: true,
});
const sequence = context.getSequence(), out = { prefill: [], decode: [] };
// A first run for whatever is set up on the way.
await sequence.evaluateWithoutGeneratingNewTokens(ids.slice(0, 64));
await sequence.clearHistory();
let read = 0;
for (const length of contexts) {
  const prompt = ids.slice(read, length);
  read = length;
  let start = performance.now();
  await sequence.evaluateWithoutGeneratingNewTokens(prompt.slice(0, -1));
  out.prefill.push(performance.now() - start);
  const times = [];
  start = performance.now();
  for await (const _ of sequence.evaluate(prompt.slice(-1), { temperature: 0, yieldEogToken: true })) {
    const now = performance.now();
    times.push(now - start);
    start = now;
    if (times.length >= Number(count)) break;
  }
  out.decode.push(times);
}
out.version = JSON.parse(readFileSync(join(folder, "node_modules", "node-llama-cpp", "package.json"), "utf8")).version;
console.log(JSON.stringify(out));
process.exit(0);
