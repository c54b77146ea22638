/**
 * A socket for a fetch handler, in Bun and in Deno.
 *
 * @module
 */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { invalid } from "./error.ts";

/** Answers requests. */
export type Handler = (request: Request) => Promise<Response>;

/** An open socket. */
export interface Listener {
  /** Its port. */
  readonly port: number;
  /** Closes it and its connections. */
  stop(): Promise<void>;
}

/** Listens at an address; port 0 takes a free one. Rejects where it is taken. */
export async function listen(hostname: string, port: number, handler: Handler): Promise<Listener> {
  const { Bun } = globalThis as unknown as {
    Bun?: { serve(options: Record<string, unknown>): { port: number; stop(force: boolean): Promise<void> | void } };
  };
  if (Bun) {
    // Long prompts leave a connection quiet for longer than Bun's 10 s; 255 s is the most there is. Without `development`
    // Bun lets two servers share a port unless told not to.
    const options = { development: false, reusePort: false, idleTimeout: 255 };
    const server = Bun.serve({ hostname, port, fetch: handler, ...options });
    return { port: server.port, stop: async () => await server.stop(true) };
  }
  // Not Deno.serve: there a request whose body did not come at once never learns that its client left before the answer
  // began (Deno 2.9.6), so its work would go on.
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
    const response = await handler(requestOf(incoming, abort.signal));
    outgoing.writeHead(response.status, Object.fromEntries(response.headers));
    body = response.body?.getReader();
    for (let part = await body?.read(); part && !part.done; part = await body?.read()) {
      if (outgoing.destroyed) break;
      if (!outgoing.write(part.value)) await Promise.race([event(outgoing, "drain"), event(outgoing, "close")]);
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

function event(emitter: ServerResponse, name: string): Promise<void> {
  return new Promise((resolve) => emitter.once(name, () => resolve()));
}

function requestOf(incoming: IncomingMessage, signal: AbortSignal): Request {
  const { method = "GET", url = "/", rawHeaders } = incoming, headers = new Headers();
  for (let i = 0; i < rawHeaders.length; i += 2) headers.append(rawHeaders[i], rawHeaders[i + 1]);
  const body = method === "GET" || method === "HEAD" ? null : bytesOf(incoming);
  return new Request(
    new URL(url, "http://localhost"),
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
