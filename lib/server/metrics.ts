/**
 * What Prometheus reads at /metrics, and what routers of several servers choose by: who waits, how full the caches are, how
 * often prompts were found in them. The names are those of vLLM with another prefix, or with its own.
 *
 * @module
 */

import process from "node:process";
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import { PAGE_TOKENS } from "../ops/ops.ts";
import type { Engine } from "../engine/engine.ts";
import type { CacheConfig, CacheStats } from "../engine/request.ts";
import type { ServedModel } from "./models.ts";

/** Milliseconds between two looks at the event loop's delay. */
const LOOP_INTERVAL = 10;

/** Whose names metrics have. */
export type MetricNames = "vecinfer" | "vllm";

/** A kind of metric whose values are taken over as they are when it is read; the engine's thread counts. */
type Kind = new (
  options: {
    name: string;
    help: string;
    labelNames: readonly "model_name"[];
    registers: Registry[];
    collect(this: { reset(): void; inc(labels: { model_name: string }, value: number): void }): void;
  },
) => unknown;

type Value = (stats: CacheStats, cache: CacheConfig, encoding: number) => number;

/** What is read of each cache. */
const CACHE_METRICS: readonly (readonly [Kind, string, string, Value])[] = [
  [Gauge, "num_requests_running", "Requests being answered.", ({ running }) => running],
  [Gauge, "num_requests_waiting", "Requests waiting.", ({ waiting }, _, encoding) => waiting + encoding],
  [
    Gauge,
    "kv_cache_usage_perc",
    "Share of the cache's pages in use; 1 is all.",
    ({ pages }) => 1 - pages.free / pages.total,
  ],
  [Gauge, "kv_cache_used_bytes", "Bytes of the cache in use.", ({ bytes }) => bytes.pages + bytes.exact],
  [
    Gauge,
    "kv_cache_bf16_bytes",
    "Bytes that a bf16 cache would use for the same pages.",
    ({ bf16Bytes }) => bf16Bytes,
  ],
  [Gauge, "kv_cache_allocated_bytes", "Bytes of the cache.", (_, { cacheBytes }) => cacheBytes],
  [Gauge, "kv_cache_bytes_per_token", "Bytes a token.", (_, { bytesPerToken }) => bytesPerToken],
  [Gauge, "kv_cache_pages_shared", "Pages held by more than one sequence.", ({ pages }) => pages.shared],
  [Counter, "prompt_tokens_total", "Prompt tokens.", ({ totals }) => totals.promptTokens],
  [Counter, "generation_tokens_total", "Tokens generated.", ({ totals }) => totals.generatedTokens],
  [Counter, "prefix_cache_queries_total", "Prompt tokens looked up.", ({ totals }) => totals.prefixQueries],
  [Counter, "prefix_cache_hits_total", "Prompt tokens found.", ({ totals }) => totals.prefixHits],
  [Counter, "engine_steps_total", "Steps of all running sequences.", ({ totals }) => totals.steps],
];

/** Names that vLLM had before, and that are still asked for: by what they are called now. */
const FORMER_NAMES: Readonly<Record<string, string>> = {
  kv_cache_usage_perc: "gpu_cache_usage_perc",
  prefix_cache_queries_total: "gpu_prefix_cache_queries_total",
  prefix_cache_hits_total: "gpu_prefix_cache_hits_total",
};

/** What does not change of a cache, as labels: routers know by it which prompts share how many blocks. */
function cacheLabels(name: string, cache: CacheConfig): Record<string, string> {
  return {
    model_name: name,
    block_size: String(PAGE_TOKENS),
    num_gpu_blocks: String(cache.cacheTokens / PAGE_TOKENS),
    cache_dtype: cache.kv,
    enable_prefix_caching: cache.prefixes > 0 ? "True" : "False",
    prefix_block_size: String(cache.block),
    max_model_len: String(cache.context),
  };
}

/** Counts, gauges and histograms of a server. */
export class Metrics implements Disposable {
  readonly #registry = new Registry();
  readonly #timer: ReturnType<typeof setInterval>;
  /** Requests by path and status. */
  readonly requests: Counter<"path" | "status">;
  /** Choices by why they ended: stop, length, abort, error. */
  readonly finished: Counter<"model_name" | "finished_reason">;
  /** Seconds from a request to its first text. */
  readonly firstToken: Histogram<"model_name">;
  /** Seconds between tokens. */
  readonly betweenTokens: Histogram<"model_name">;
  /** Seconds of a whole request. */
  readonly request: Histogram<"model_name">;
  /** Seconds by which timers of the event loop are late. */
  readonly loopDelay: Histogram;

  /** Starts to watch the event loop. `models` says which models there are. */
  constructor(engine: Engine, models: () => ServedModel[], names: MetricNames = "vecinfer") {
    const registers = [this.#registry], prefix = `${names}:`;
    this.requests = new Counter({
      name: `${prefix}http_requests_total`,
      help: "Requests by path and status.",
      labelNames: ["path", "status"],
      registers,
    });
    this.finished = new Counter({
      name: `${prefix}request_success_total`,
      help: "Choices by why they ended.",
      labelNames: ["model_name", "finished_reason"],
      registers,
    });
    const seconds = (from: number, count: number) => Array.from({ length: count }, (_, i) => from * 2 ** i);
    const histogram = (name: string, help: string, buckets: number[]) =>
      new Histogram({ name: prefix + name, help, labelNames: ["model_name"] as const, buckets, registers });
    this.firstToken = histogram("time_to_first_token_seconds", "Time to first token.", seconds(0.005, 15));
    this.betweenTokens = histogram("inter_token_latency_seconds", "Time between tokens.", seconds(0.001, 14));
    this.request = histogram("e2e_request_latency_seconds", "Time of a whole request.", seconds(0.02, 15));
    this.loopDelay = new Histogram({
      name: `${prefix}event_loop_delay_seconds`,
      help: "By how much the event loop is late.",
      buckets: seconds(0.001, 12),
      registers,
    });
    this.#watchCaches(engine, models, names);
    new Gauge({
      name: "process_resident_memory_bytes",
      help: "Memory of the process.",
      registers,
      collect(): void {
        this.set(process.memoryUsage().rss);
      },
    });
    this.#timer = this.#watchLoop();
  }

  #watchCaches(engine: Engine, models: () => ServedModel[], names: MetricNames): void {
    const registers = [this.#registry], prefix = `${names}:`;
    for (const [Kind, name, help, value] of CACHE_METRICS) {
      const former = names === "vllm" ? FORMER_NAMES[name] : undefined;
      for (const each of former === undefined ? [name] : [name, former]) {
        new Kind({
          name: prefix + each,
          help,
          labelNames: ["model_name"],
          registers,
          collect(): void {
            if (!engine.loaded) return;
            const { caches } = engine.stats;
            this.reset();
            for (const [i, { name, cache }] of models().entries()) {
              // A prompt is not of a cache before it is tokens.
              this.inc({ model_name: name }, value(caches[cache.kv], cache, i === 0 ? engine.encoding : 0));
            }
          },
        });
      }
    }
    new Gauge({
      name: `${prefix}cache_config_info`,
      help: "What does not change of a cache: block_size is in tokens, num_gpu_blocks the blocks in all.",
      labelNames: Object.keys(cacheLabels("", {} as CacheConfig)),
      registers,
      collect(): void {
        if (!engine.loaded) return;
        for (const { name, cache } of models()) this.set(cacheLabels(name, cache), 1);
      },
    });
  }

  #watchLoop(): ReturnType<typeof setInterval> {
    let expected = performance.now() + LOOP_INTERVAL;
    const timer = setInterval(() => {
      const now = performance.now();
      this.loopDelay.observe(Math.max(0, now - expected) / 1000);
      expected = now + LOOP_INTERVAL;
    }, LOOP_INTERVAL);
    (timer as { unref?: () => void }).unref?.();
    return timer;
  }

  /** The text that Prometheus reads. */
  text(): Promise<string> {
    return this.#registry.metrics();
  }

  /** Its content type. */
  get contentType(): string {
    return this.#registry.contentType;
  }

  /** Stops to watch. */
  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}
