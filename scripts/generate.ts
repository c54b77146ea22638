/**
 * Continues a text, or answers a message, from the command line.
 *
 * @module
 */

import process from "node:process";
import { type ChatMessage, LanguageModel, type LoadOptions, syntheticConfig, syntheticPrompt } from "../mod.ts";
import { readText } from "../lib/calibration/mod.ts";
import { DEFAULT_KV, kvConfig } from "../lib/ops/mod.ts";
import { command, UsageError } from "./frame/command.ts";
import { CACHE_OPTIONS, checked, configText, deviceOptions, MODEL_OPTIONS, whole } from "./frame/options.ts";

await command({
  name: "generate",
  summary: "continues a prompt with a quantized KV cache, streaming to stdout",
  usage: "scripts/generate.ts [options] <prompt>, or --synthetic NAME",
  positionals: [0, 1],
  options: {
    ...MODEL_OPTIONS,
    kv: {
      type: "string",
      short: "k",
      default: DEFAULT_KV,
      help: "cache: bf16, vq4, vq3, vq2, vq1.5, vq1.25, vq1, with a plus, dXbY, or keys+values",
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
  },
}, async ({ options, positionals, signal, progress }) => {
  const { synthetic } = options, given = [positionals[0], options.file, synthetic].filter((from) => from !== undefined);
  if (given.length !== 1) throw new UsageError("give either a prompt or --file, or --synthetic");
  if (synthetic !== undefined) {
    checked(() => syntheticConfig(synthetic));
    if (options.chat) throw new UsageError("--chat needs a model with a tokenizer, which --synthetic has not");
  }
  const kv = options.keys || options.values
    ? { keys: options.keys ?? options.kv, values: options.values ?? options.kv }
    : options.kv;
  checked(() => kvConfig(kv, options));
  const maxTokens = whole("max-tokens", options["max-tokens"]);
  const context = options.context === undefined ? undefined : whole("context", options.context);
  const promptTokens = whole("prompt-tokens", options["prompt-tokens"]);
  const text = options.file === undefined ? positionals[0] ?? "" : readText(options.file);
  const prompt: string | ChatMessage[] = options.chat
    ? [...options.system ? [{ role: "system", content: options.system }] : [], { role: "user", content: text }]
    : text;
  const loading = progress("loading", 1);
  const loadOptions: LoadOptions = {
    ...deviceOptions(options),
    kv,
    sinks: options.sinks,
    window: options.window,
    calibration: options.calibration,
    context,
    signal,
    onProgress: (bytes, total) => loading.update(bytes / total),
  };
  const load = synthetic === undefined
    ? LanguageModel.load(options.model, loadOptions)
    : LanguageModel.synthetic(synthetic, { ...loadOptions, context: context ?? promptTokens + maxTokens });
  using model = await load.finally(() => loading.stop());
  if (!options.json) console.error(`${configText(model.config)}\n`);
  const ids = synthetic === undefined
    ? model.encode(prompt)
    : [...syntheticPrompt(model.model.config, promptTokens, options.seed)];
  const started = performance.now();
  let out = "", tokens = 0, first = started, finishReason = "";
  const logprobs: number[] = [], generated: number[] = [];
  const reading = progress("prompt", model.model.config.layers);
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
  if (!options.json && !options.chat) process.stdout.write(text);
  for await (const piece of pieces) {
    if (tokens === 0) first = performance.now();
    tokens += piece.tokens.length;
    for (const token of piece.tokens) {
      generated.push(token.id);
      logprobs.push(token.logprob);
    }
    out += piece.text;
    finishReason = piece.finishReason ?? finishReason;
    if (!options.json) process.stdout.write(piece.text);
  }
  const prefill = ids.length / (first - started) * 1000, decode = (tokens - 1) / (performance.now() - first) * 1000;
  if (options.json) {
    console.log(JSON.stringify({
      config: model.config,
      promptTokens: ids.length,
      text: out,
      tokens: generated,
      logprobs,
      finishReason,
      prefillTokensPerSecond: prefill,
      decodeTokensPerSecond: tokens > 1 ? decode : null,
    }));
  } else {
    console.log();
    console.error(
      `\n${ids.length} prompt tokens at ${prefill.toFixed(0)} tokens/s` +
        (tokens > 1 ? `, ${tokens} tokens at ${decode.toFixed(0)} tokens/s` : "") + ` (${finishReason})`,
    );
  }
});
