/**
 * A socket for a fetch handler, in Bun and in Deno.
 *
 * @module
 */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { invalid } from "./error.ts";

/** Seconds that a client may leave what was sent unread. */
const PATIENCE = 120;

/** Answers requests; `connection` names the one that a request came on. */
export type Handler = (request: Request, connection: string) => Promise<Response>;

/** An open socket. */
export interface Listener {
  /** Its port. */
  readonly port: number;
  /** Closes it and its connections. */
  stop(): Promise<void>;
}

/** Listens at an address; port 0 takes a free one. Rejects where it is taken. */
export async function listen(hostname: string, port: number, handler: Handler): Promise<Listener> {
  // Neither Bun.serve nor Deno.serve. Bun.serve 1.4.5 answers none of the requests that come on a connection before the first of
  // them is answered; with Deno.serve 2.9.6 a request whose body did not come at once never learns that its client left
  // before the answer began, so its work would go on.
  const server = createServer((incoming, outgoing) => void answer(incoming, outgoing, handler));
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, hostname, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function answer(incoming: IncomingMessage, outgoing: ServerResponse, handler: Handler): Promise<void> {
  const abort = new AbortController();
  let body: ReadableStreamDefaultReader<Uint8Array> | undefined;
  outgoing.on("close", () => {
    if (outgoing.writableFinished) return;
    abort.abort(new Error("the client left"));
    void body?.cancel().catch(() => {});
  });
  try {
    const { remoteAddress, remotePort } = incoming.socket;
    const response = await handler(requestOf(incoming, abort.signal), `${remoteAddress} ${remotePort}`);
    outgoing.writeHead(response.status, Object.fromEntries(response.headers));
    body = response.body?.getReader();
    for (let part = await body?.read(); part && !part.done; part = await body?.read()) {
      if (outgoing.destroyed) break;
      if (!outgoing.write(part.value)) await drained(outgoing);
    }
    outgoing.end();
    // What the handler did not read stands before the connection's next request.
    if (!incoming.complete) incoming.resume();
  } catch (error) {
    // Headers that make no request, or a connection that broke.
    if (outgoing.headersSent || outgoing.destroyed) return void outgoing.destroy();
    outgoing.writeHead(400, { "content-type": "application/json" });
    outgoing.end(JSON.stringify(invalid((error as Error).message).body));
  }
}

/** Waits until a client has read what was written, or is gone; one that reads nothing for too long is sent away. */
function drained(outgoing: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => outgoing.destroy(), PATIENCE * 1000);
    const done = (): void => {
      clearTimeout(timer);
      outgoing.off("drain", done);
      outgoing.off("close", done);
      resolve();
    };
    outgoing.on("drain", done);
    outgoing.on("close", done);
    if (outgoing.destroyed) done();
  });
}

function requestOf(incoming: IncomingMessage, signal: AbortSignal): Request {
  const { method = "GET", url = "/", rawHeaders } = incoming, headers = new Headers();
  for (let i = 0; i < rawHeaders.length; i += 2) headers.append(rawHeaders[i], rawHeaders[i + 1]);
  const body = method === "GET" || method === "HEAD" ? null : bytesOf(incoming);
  // Not `new URL(url, base)`, for which the path //a/b is b on the host a.
  const target = url.startsWith("/") ? new URL(`http://localhost${url}`) : new URL(url, "http://localhost");
  return new Request(
    target,
    { method, headers, body, signal, duplex: "half" } as RequestInit,
  );
}

/** A request's body as a stream, read as it is wanted. Given up, it leaves the rest to be passed over. */
function bytesOf(incoming: IncomingMessage): ReadableStream<Uint8Array> {
  const parts = incoming.iterator({ destroyOnReturn: false }) as AsyncIterator<Uint8Array>;
  return new ReadableStream<Uint8Array>({
    async pull(controller): Promise<void> {
      const part = await parts.next();
      if (part.done) controller.close();
      else controller.enqueue(new Uint8Array(part.value));
    },
    async cancel(): Promise<void> {
      await parts.return?.();
    },
  }, { highWaterMark: 0 });
}
