/**
 * llama.cpp and this project on one model and CPU, in one run: milliseconds a decoded token at several contexts, and prompts
 * from empty. llama.cpp runs with flash attention, a batch of 512 and its F16 cache, through node-llama-cpp, which is not
 * among the dependencies: its packages take 700 MB.
 *
 * @module
 */

import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { basename, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { LanguageModel, openModel, openTokenizer } from "../mod.ts";
import { calibrate, calibrationFolder, isFitted, modelFingerprint, readText } from "../lib/calibration/mod.ts";
import { Device, kvConfig, presetScheme, type Sequence, writeCalibration } from "../lib/ops/mod.ts";
import { UsageError } from "../scripts/frame/command.ts";
import { rewriteGguf } from "../scripts/frame/gguf.ts";
import { type Bench, benchmark } from "./frame.ts";

/** Milliseconds: of each piece of the prompt that leads to a context, and of each token decoded there. */
interface Times {
  prefill: number[];
  decode: number[][];
}

const embedded = fileURLToPath(new URL("../assets/tiny-llama", import.meta.url));
const program = fileURLToPath(new URL("baselines/llama_cpp.mjs", import.meta.url));
const defaultModel = fileURLToPath(
  new URL("../../shared/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf", import.meta.url),
);

await benchmark("llama_cpp", "decode and prompts beside llama.cpp, one GGUF model with F16 and Q8_0 weights", {
  model: { type: "string", short: "m", default: defaultModel, help: "GGUF file, whose weights are rewritten" },
  modules: { type: "string", default: "llama_cpp", help: "folder in which node-llama-cpp was installed" },
  weights: { type: "string", default: "F16,Q8_0", help: "weight types, with commas; as-is = the file's own" },
  kv: { type: "string", default: "vq2", help: "presets or keys+values, with commas" },
  contexts: { type: "string", default: "512,2048,4096,8000", help: "context lengths, growing, with commas" },
  tokens: { type: "number", default: 32, help: "tokens decoded at each context" },
  rounds: { type: "number", default: 2, help: "runs of each, in turn" },
}, async (bench, options) => {
  const { device, notes, signal, verbose } = bench;
  if (device.name !== "cpu") throw new UsageError("llama.cpp is compared on the CPU: --device cpu is needed");
  const model = String(options.model), modules = String(options.modules), count = Number(options.tokens);
  if (!existsSync(join(modules, "node_modules", "node-llama-cpp"))) {
    throw new UsageError(
      `${modules} has no node-llama-cpp; it takes 700 MB, and one command gets it:\n  mkdir -p ${modules} && ` +
        `npm install --prefix ${modules} node-llama-cpp@3.22.1\nor name its folder with --modules`,
    );
  }
  const contexts = String(options.contexts).split(",").map(Number), kinds = String(options.kv).split(",");
  const threads = Number(options.threads) || availableParallelism(), longest = contexts.at(-1)!;
  const folder = mkdtempSync(join(tmpdir(), "vecinfer-llama-cpp-"));
  try {
    const ids: number[] = [], tokenizer = openTokenizer(model);
    for (const document of readText(join(embedded, "calib.txt")).split("\u001e")) {
      if (ids.length >= longest) break;
      ids.push(...tokenizer.encode(document, { addSpecialTokens: false, parseSpecialTokens: false }));
    }
    const idsFile = join(folder, "ids.json");
    writeFileSync(idsFile, JSON.stringify(ids.slice(0, longest)));
    notes.contexts = contexts;
    notes.threads = threads;
    notes.model = basename(model);
    for (const weights of String(options.weights).split(",")) {
      let path = model;
      if (weights !== "as-is") {
        if (weights !== "F16" && weights !== "Q8_0") {
          throw new UsageError(`--weights has "${weights}"; F16, Q8_0 or as-is`);
        }
        rewriteGguf(model, path = join(folder, `${weights}.gguf`), weights);
      }
      for (const kind of kinds.filter((kind) => isFitted(presetScheme(kind)) && path !== model)) {
        if (verbose) console.error(`calibrating ${kind} for ${weights} weights: formats a layer decide its speed`);
        await calibrated(path, kind, Int32Array.from(ids.slice(0, 2048)), threads, signal);
      }
      const peer: Times[] = [], own = new Map<string, Times[]>(kinds.map((kind) => [kind, []]));
      for (let round = 0; round < Number(options.rounds); round++) {
        signal.throwIfAborted();
        const text = execFileSync(
          "node",
          [program, modules, path, contexts.join(), String(count), String(threads), idsFile],
          { encoding: "utf8", env: { ...process.env, UV_THREADPOOL_SIZE: "1" }, stdio: ["ignore", "pipe", "inherit"] },
        );
        const { version, ...times } = JSON.parse(text.trim().split("\n").at(-1)!) as Times & { version: string };
        notes["node-llama-cpp"] = version;
        peer.push(times);
        for (const kind of kinds) own.get(kind)!.push(await ours(path, kind, ids, contexts, count, threads, signal));
      }
      const label = weights === "as-is" ? "weights as they are" : `${weights} weights`;
      for (const kind of kinds) compare(bench, `${label}, ${kind}`, contexts, own.get(kind)!, peer);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

/** Adds figures of decoding at each context, and of the shortest and the longest prompt. */
function compare(
  { add, verbose }: Bench,
  label: string,
  contexts: readonly number[],
  runs: Times[],
  peer: Times[],
): void {
  contexts.forEach((context, i) => {
    const pooled = (all: Times[]): number[] => all.flatMap(({ decode }) => decode[i]).sort((a, b) => a - b);
    const times = pooled(runs), theirs = quartile(pooled(peer), 2);
    const [p25, median, p75] = [1, 2, 3].map((q) => quartile(times, q));
    add({
      name: `${label}, decode at ${context}`,
      median,
      p25,
      p75,
      peer: { name: "llama.cpp, F16 cache", milliseconds: theirs, ratio: theirs / median },
    });
    if (verbose) {
      console.log(`${"".padEnd(20)} llama.cpp ${theirs.toFixed(2)} ms: ${(theirs / median).toFixed(2)}x`);
    }
  });
  for (const i of new Set([0, contexts.length - 1])) {
    const total = (all: Times[]): number[] =>
      all.map(({ prefill }) => prefill.slice(0, i + 1).reduce((a, b) => a + b)).sort((a, b) => a - b);
    // The better of two runs, and the median of more.
    const best = (all: number[]): number => all[Math.floor((all.length - 1) / 2)];
    const times = total(runs), median = best(times), theirs = best(total(peer));
    add({
      name: `${label}, prompt of ${contexts[i]}`,
      median,
      p25: times[0],
      p75: times.at(-1)!,
      peer: { name: "llama.cpp, F16 cache", milliseconds: theirs, ratio: theirs / median },
    });
    const rate = (ms: number): string => (contexts[i] / ms * 1000).toFixed(0);
    if (verbose) {
      console.log(
        `${"".padEnd(20)} ${rate(median)} tokens/s, llama.cpp ${rate(theirs)}: ${(theirs / median).toFixed(2)}x`,
      );
    }
  }
}

function quartile(sorted: readonly number[], q: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q / 4))];
}

/** Calibrates a preset of `vecinfer+` on a little text, beside the rewritten model: enough for the formats of its layers. */
async function calibrated(path: string, kind: string, text: Int32Array, threads: number, signal: AbortSignal) {
  using device = Device.open({ device: "cpu", threads });
  using model = await openModel(device, path, { signal });
  const training = { samples: 20_000, iterations: 4, signal };
  const calibration = await calibrate(model, kvConfig(kind), [text], presetScheme(kind), training);
  const folder = calibrationFolder(path);
  mkdirSync(folder, { recursive: true });
  writeCalibration(join(folder, `${kind}.vecinfer.safetensors`), calibration, model.cacheShape, modelFingerprint(path));
}

/** The same steps here: pieces of the prompt, and greedy tokens through the public generator. */
async function ours(
  path: string,
  kind: string,
  ids: readonly number[],
  contexts: readonly number[],
  count: number,
  threads: number,
  signal: AbortSignal,
): Promise<Times> {
  const context = contexts.at(-1)! + contexts.length * (count + 8);
  using model = await LanguageModel.load(path, { device: "cpu", threads, kv: kind, context });
  const out: Times = { prefill: [], decode: [] };
  const ends = Object.fromEntries(model.model.config.eosIds.map((id) => [id, -Infinity]));
  // Without the head, as in a batch: llama.cpp computes no logits here either.
  const read = (sequence: Sequence, part: readonly number[]): void => {
    for (const _ of model.model.prefillParts(null, sequence, part, { signal }));
    model.device.synchronize();
  };
  {
    using warm = model.cache.sequence();
    read(warm, ids.slice(0, 64));
  }
  using sequence = model.cache.sequence();
  let done = 0;
  for (const length of contexts) {
    const prompt = ids.slice(done, length), started = performance.now();
    done = length;
    read(sequence, prompt.slice(0, -1));
    out.prefill.push(performance.now() - started);
    const times: number[] = [], settings = { sequence, maxTokens: count, temperature: 0, logitBias: ends, signal };
    let start = performance.now();
    for await (const { tokens } of model.generate(prompt.slice(-1), settings)) {
      const now = performance.now();
      for (const _ of tokens) times.push((now - start) / tokens.length);
      start = now;
    }
    out.decode.push(times);
  }
  return out;
}
