/**
 * What the parts of a server share.
 *
 * @module
 */

import type { Engine } from "../engine/engine.ts";
import type { LogEntry } from "./log.ts";
import type { Metrics } from "./metrics.ts";
import type { ServedModel } from "./models.ts";

export type { LogEntry } from "./log.ts";

/** A server's state. */
export interface ServerState {
  /** What answers. */
  readonly engine: Engine;
  /** The models on offer. Throws EngineError (unavailable) until they are loaded. */
  readonly models: () => ServedModel[];
  /** What Prometheus reads. */
  readonly metrics: Metrics;
  /** Gets a line for each request. */
  readonly log: (entry: LogEntry) => void;
  /** Bytes of a request's body at most. */
  readonly bodyBytes: number;
  /** Seconds that a request may take; 0 is no limit. */
  readonly timeout: number;
  /** Whether prompts of one key are found again for another one. */
  readonly sharePrefixes: boolean;
  /** Whether requests for completions are refused from here on. */
  draining: boolean;
  /** Completions that are running or waiting. */
  active: number;
}
