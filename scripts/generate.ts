/**
 * Continues a text, or answers a message, from the command line.
 *
 * @module
 */

import process from "node:process";
import { type ChatMessage, LanguageModel, type LoadOptions } from "../mod.ts";
import { readText, syntheticCalibration } from "../lib/calibration/mod.ts";
import { DEFAULT_KV, kvConfig, syntheticConfig, syntheticPrompt } from "../lib/ops/mod.ts";
import { command, type Invocation, type Option, UsageError } from "./frame/command.ts";
import { CACHE_OPTIONS, checked, configText, deviceOptions, MODEL_OPTIONS, whole } from "./frame/options.ts";

const OPTIONS = {
  ...MODEL_OPTIONS,
  kv: {
    type: "string",
    short: "k",
    help:
      "cache: bf16, vq4, vq3, vq2, vq1.5, vq1.25, vq1, with a plus, dXbY, or keys+values (default: vq2+ where heads have codes)",
  },
  keys: { type: "string", help: "preset or format of the keys alone" },
  values: { type: "string", help: "preset or format of the values alone" },
  ...CACHE_OPTIONS,
  synthetic: { type: "string", help: "random weights of a published shape, for speed: llama-3.1-8b, ..." },
  "prompt-tokens": { type: "number", default: 1024, help: "length of the random prompt, with --synthetic" },
  file: { type: "string", short: "f", help: "read the prompt from a file instead" },
  chat: { type: "boolean", help: "the prompt is a user's message: use the model's chat template" },
  system: { type: "string", help: "system message, with --chat" },
  "max-tokens": { type: "number", short: "n", default: 128, help: "tokens at most" },
  context: { type: "number", help: "longest sequence in tokens (default: the model's, at most 8192)" },
  temperature: { type: "number", short: "t", default: 0, help: "0 takes the most probable token" },
  "top-k": { type: "number", default: 0, help: "keep this many tokens, 0 = all" },
  "top-p": { type: "number", default: 1, help: "keep the most probable tokens of this mass" },
  "min-p": { type: "number", default: 0, help: "keep tokens of at least this share of the best one's probability" },
  "repetition-penalty": { type: "number", default: 1, help: "on tokens in prompt and output" },
  "presence-penalty": { type: "number", default: 0, help: "on tokens in the output" },
  "frequency-penalty": { type: "number", default: 0, help: "on tokens in the output, for each time" },
  seed: { type: "number", help: "draw the same tokens again" },
  stop: { type: "string", help: "end before this text" },
  json: { type: "boolean", help: "print one JSON object: config, text, tokens, speed" },
} as const satisfies Record<string, Option>;

type Run = Invocation<typeof OPTIONS>;

/** What was generated, and when: milliseconds. */
interface Generated {
  text: string;
  tokens: number[];
  logprobs: number[];
  finishReason: string;
  started: number;
  first: number;
  ended: number;
}

await command({
  name: "generate",
  summary: "continues a prompt with a quantized KV cache, streaming to stdout",
  usage: "scripts/generate.ts [options] <prompt>, or --synthetic NAME",
  positionals: [0, 1],
  options: OPTIONS,
}, async (run) => {
  const { options, positionals } = run, { synthetic } = options;
  const given = [positionals[0], options.file, synthetic].filter((from) => from !== undefined);
  if (given.length !== 1) throw new UsageError("give either a prompt or --file, or --synthetic");
  if (synthetic !== undefined) {
    checked(() => syntheticConfig(synthetic));
    if (options.chat) throw new UsageError("--chat needs a model with a tokenizer, which --synthetic has not");
  }
  const maxTokens = whole("max-tokens", options["max-tokens"]);
  const promptTokens = whole("prompt-tokens", options["prompt-tokens"]);
  using model = await load(run, promptTokens + maxTokens);
  if (!options.json) console.error(`${configText(model.config)}\n`);
  const text = options.file === undefined ? positionals[0] ?? "" : readText(options.file);
  const prompt: string | ChatMessage[] = options.chat
    ? [...options.system ? [{ role: "system", content: options.system }] : [], { role: "user", content: text }]
    : text;
  const ids = synthetic === undefined
    ? model.encode(prompt)
    : [...syntheticPrompt(model.model.config, promptTokens, options.seed)];
  if (!options.json && !options.chat) process.stdout.write(text);
  report(run, model, ids.length, await generate(run, model, ids, maxTokens));
});

/** Loads the model, or makes a synthetic one whose context is `needed` tokens where none was asked for. */
async function load({ options, signal, progress }: Run, needed: number): Promise<LanguageModel> {
  const { calibration, synthetic } = options;
  const kv = options.keys || options.values
    ? { keys: options.keys ?? options.kv ?? DEFAULT_KV, values: options.values ?? options.kv ?? DEFAULT_KV }
    : options.kv;
  if (kv !== undefined) checked(() => kvConfig(kv, options));
  const context = options.context === undefined ? undefined : whole("context", options.context);
  const loading = progress("loading", 1);
  const common: Omit<LoadOptions, "calibration"> = {
    ...deviceOptions(options),
    kv,
    sinks: options.sinks,
    window: options.window,
    context,
    signal,
    onProgress: (bytes, total) => loading.update(bytes / total),
  };
  try {
    if (synthetic === undefined) return await LanguageModel.load(options.model, { ...common, calibration });
    return await LanguageModel.synthetic(synthetic, {
      ...common,
      context: context ?? needed,
      calibration: calibration === "synthetic"
        ? (model, config) => syntheticCalibration(model, config, signal)
        : calibration,
    });
  } finally {
    loading.stop();
  }
}

/** Generates, and writes the text as it comes. */
async function generate(
  { options, signal, progress }: Run,
  model: LanguageModel,
  ids: readonly number[],
  maxTokens: number,
): Promise<Generated> {
  const reading = progress("prompt", model.model.config.layers), started = performance.now();
  const out: Generated = { text: "", tokens: [], logprobs: [], finishReason: "", started, first: started, ended: 0 };
  const pieces = model.generate(ids, {
    maxTokens,
    temperature: options.temperature,
    topK: options["top-k"],
    topP: options["top-p"],
    minP: options["min-p"],
    repetitionPenalty: options["repetition-penalty"],
    presencePenalty: options["presence-penalty"],
    frequencyPenalty: options["frequency-penalty"],
    seed: options.seed,
    stop: options.stop === undefined ? [] : [options.stop],
    signal,
    onPrefill: (done, total) => done === total ? reading.stop() : reading.update(done),
  });
  for await (const piece of pieces) {
    if (out.tokens.length === 0) out.first = performance.now();
    for (const { id, logprob } of piece.tokens) {
      out.tokens.push(id);
      out.logprobs.push(logprob);
    }
    out.text += piece.text;
    out.finishReason = piece.finishReason ?? out.finishReason;
    if (!options.json) process.stdout.write(piece.text);
  }
  out.ended = performance.now();
  return out;
}

/** Says how fast it was; or, for `--json`, everything. */
function report({ options }: Run, model: LanguageModel, promptTokens: number, out: Generated): void {
  const { text, tokens, logprobs, finishReason, started, first, ended } = out;
  const prefill = promptTokens / (first - started) * 1000, decode = (tokens.length - 1) / (ended - first) * 1000;
  if (options.json) {
    console.log(JSON.stringify({
      config: model.config,
      promptTokens,
      text,
      tokens,
      logprobs,
      finishReason,
      prefillTokensPerSecond: prefill,
      decodeTokensPerSecond: tokens.length > 1 ? decode : null,
    }));
    return;
  }
  console.log();
  console.error(
    `\n${promptTokens} prompt tokens at ${prefill.toFixed(0)} tokens/s` +
      (tokens.length > 1 ? `, ${tokens.length} tokens at ${decode.toFixed(0)} tokens/s` : "") + ` (${finishReason})`,
  );
}
