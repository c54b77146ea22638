/**
 * Errors as OpenAI's API has them: `{ error: { message, type, param, code } }` and a status.
 *
 * @module
 */

import { EngineError } from "../engine/request.ts";

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

/** Any error as a client is told it. Texts of unexpected errors stay in the log. */
export function apiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  if (!(error instanceof EngineError)) {
    return new ApiError(500, "server_error", null, "the server failed to answer this request; its log says why");
  }
  const { message, param } = error, once = { "x-should-retry": "false" };
  switch (error.code) {
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
    default:
      return new ApiError(500, "server_error", null, message, { headers: once });
  }
}
