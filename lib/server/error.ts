/**
 * Errors as OpenAI's API has them: `{ error: { message, type, param, code } }` and a status.
 *
 * @module
 */

import { EngineError } from "../engine/request.ts";
import type { LogEntry } from "./log.ts";

/** An error that a client is told. */
export class ApiError extends Error {
  /** Always "ApiError". */
  override readonly name: string = "ApiError";
  /** HTTP status. */
  readonly status: number;
  /** As in OpenAI's API. */
  readonly type: string;
  /** As in OpenAI's API, or null. */
  readonly code: string | null;
  /** The field at fault, or null. */
  readonly param: string | null;
  /** Further headers of the response. */
  readonly headers: Record<string, string>;

  /** Makes an error. */
  constructor(
    status: number,
    type: string,
    code: string | null,
    message: string,
    options: { param?: string | null; headers?: Record<string, string> } = {},
  ) {
    super(message);
    this.status = status;
    this.type = type;
    this.code = code;
    this.param = options.param ?? null;
    this.headers = options.headers ?? {};
  }

  /** The error as the body of a response. */
  get body(): { error: { message: string; type: string; param: string | null; code: string | null } } {
    return { error: { message: this.message, type: this.type, param: this.param, code: this.code } };
  }

  /** The error as a response. */
  response(): Response {
    return Response.json(this.body, { status: this.status, headers: this.headers });
  }
}

/** A request that says something wrong. */
export function invalid(message: string, param: string | null = null, code: string | null = null): ApiError {
  return new ApiError(400, "invalid_request_error", code, message, { param });
}

/** Any error as a client is told it. Texts of unexpected errors stay in the log, where `id` finds them. */
export function apiError(error: unknown, id?: string): ApiError {
  if (error instanceof ApiError) return error;
  const once = { "x-should-retry": "false" };
  if (!(error instanceof EngineError) || error.code === "internal") {
    const which = id === undefined ? "" : ` (request ${id})`;
    const message = `the server failed to answer this request; its log says why${which}`;
    return new ApiError(500, "server_error", null, message, { headers: once });
  }
  const { message, param, code } = error;
  switch (code) {
    case "invalid_request":
      return invalid(message, param);
    case "context_length":
      return invalid(message, param, "context_length_exceeded");
    case "queue_full":
      return new ApiError(429, "rate_limit_error", "rate_limit_exceeded", message, { headers: { "retry-after": "1" } });
    case "unavailable":
      return new ApiError(503, "server_error", "unavailable", message, { headers: { "retry-after": "5" } });
    case "timeout":
      return new ApiError(504, "server_error", "request_timeout", message, { headers: once });
    case "cancelled":
      return new ApiError(499, "server_error", "cancelled", message);
  }
}

/** Characters of what the log says of an unexpected error at most. */
const DETAIL = 2000;

/** Writes an error down in a request's line: what clients are told, and what they are not. */
export function noteError(entry: LogEntry, error: unknown): void {
  const told = apiError(error);
  entry.error = told.code ?? told.type;
  if (told.status !== 500) return;
  // What is known by now came first, and is the cause.
  entry.detail ??= (error instanceof Error ? error.stack ?? error.message : String(error)).slice(0, DETAIL);
}
