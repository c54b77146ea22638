/**
 * HTTP requests that survive a bad connection: retries with growing pauses, redirects that do not carry the token away,
 * and a limit on how long a connection may be silent.
 *
 * @module
 */

import { WeightsError } from "../weights/json.ts";

/** How requests are made. */
export interface TransferOptions {
  /** Access token; sent to the first address's origin only, not to where it redirects. */
  readonly token?: string;
  /** Stops the transfer. */
  readonly signal?: AbortSignal;
  /** Replaces `globalThis.fetch`. */
  readonly fetch?: (url: string, init: RequestInit) => Promise<Response>;
  /** Failures in a row, without progress in between, after which a transfer is given up. Default 5. */
  readonly attempts?: number;
  /** Milliseconds before the second attempt; doubled for each further one. Default 500. */
  readonly backoff?: number;
  /** Milliseconds without a byte after which a connection counts as broken. Default 60000. */
  readonly stall?: number;
}

/** A failure that another attempt may not meet, with the pause that the server asked for, in milliseconds. */
class PassingFailure extends Error {
  readonly wait: number | undefined;

  constructor(message: string, wait?: number) {
    super(message);
    this.wait = wait;
  }
}

/** The longest pause between two attempts, milliseconds. */
const LONGEST_PAUSE = 60_000;

/**
 * Requests `url` and gives the response to `work`, again after failures that may pass: broken connections, stalls, 408,
 * 429 and 5xx. `headers` is asked anew for each attempt. `work` calls `reached` with the bytes it has got to; going
 * further than before makes the count of failures begin anew. Other statuses, and what `work` throws as
 * {@link WeightsError}, end it at once.
 */
export async function transfer<T>(
  url: string,
  options: TransferOptions,
  headers: () => Record<string, string>,
  work: (response: Response, reached: (bytes: number) => void) => Promise<T>,
  onRetry: (cause: string) => void = () => {},
): Promise<T> {
  const { attempts = 5, backoff = 500, stall = 60_000, signal } = options;
  let furthest = 0;
  for (let failures = 0;;) {
    signal?.throwIfAborted();
    const connection = new AbortController();
    const silence = new PassingFailure(`no byte arrived for ${stall / 1000} s`);
    const watch = (): ReturnType<typeof setTimeout> => setTimeout(() => connection.abort(silence), stall);
    let timer = watch();
    const stop = (): void => connection.abort(signal?.reason);
    signal?.addEventListener("abort", stop);
    try {
      const response = await request(url, headers(), options, connection.signal);
      return await work(response, (bytes) => {
        clearTimeout(timer);
        timer = watch();
        if (bytes <= furthest) return;
        furthest = bytes;
        failures = 0;
      });
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof WeightsError) throw error;
      const cause = connection.signal.aborted ? silence : error as Error;
      failures++;
      if (failures >= attempts) {
        throw new WeightsError(`${url}: ${describe(cause)}; given up after ${failures} attempts`);
      }
      onRetry(describe(cause));
      const wait = (cause instanceof PassingFailure ? cause.wait : undefined) ?? backoff * 2 ** (failures - 1);
      await pause(Math.min(wait, LONGEST_PAUSE), signal);
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
      connection.abort();
    }
  }
}

/** Follows redirects itself: the token goes to the first origin alone, whatever the runtime's fetch would do. */
async function request(
  url: string,
  headers: Record<string, string>,
  options: TransferOptions,
  signal: AbortSignal,
): Promise<Response> {
  const fetch = options.fetch ?? globalThis.fetch;
  const { origin } = new URL(url);
  let address = url;
  for (let hops = 0; hops < 10; hops++) {
    const trusted = options.token !== undefined && new URL(address).origin === origin;
    const response = await fetch(address, {
      headers: {
        // Compressed, the bytes of a range would not be the bytes of the file.
        "accept-encoding": "identity",
        ...headers,
        ...(trusted ? { authorization: `Bearer ${options.token}` } : {}),
      },
      redirect: "manual",
      signal,
    });
    const location = response.headers.get("location");
    if (response.status < 300 || response.status >= 400 || location === null) {
      if (!response.ok) await refuse(response, address);
      return response;
    }
    await response.body?.cancel();
    address = new URL(location, address).href;
  }
  throw new WeightsError(`${url}: more than 10 redirects`);
}

async function refuse(response: Response, address: string): Promise<never> {
  await response.body?.cancel();
  const { status } = response;
  // The query of a redirected address is its signature.
  const place = address.split("?")[0];
  if (status === 408 || status === 429 || status >= 500) {
    const seconds = Number(response.headers.get("retry-after") ?? NaN);
    throw new PassingFailure(`HTTP ${status}`, Number.isFinite(seconds) ? seconds * 1000 : undefined);
  }
  if (status === 401 || status === 403) {
    throw new WeightsError(
      `${place}: HTTP ${status}: no access: the name is wrong, or the repository is private or gated and needs a token ` +
        "of an account that may read it",
    );
  }
  if (status === 404) throw new WeightsError(`${place}: HTTP 404: no such repository, revision or file`);
  throw new WeightsError(`${place}: HTTP ${status}`);
}

/** fetch hides the cause of a broken connection behind "fetch failed". */
function describe(error: Error): string {
  const cause = error.cause instanceof Error ? `: ${error.cause.message}` : "";
  return `${error.message}${cause}`;
}

function pause(milliseconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
