import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** A request that the server got. */
export interface Seen {
  readonly path: string;
  readonly range: string | undefined;
  readonly authorization: string | undefined;
}

/** A hub on this machine that serves one repository, `owner/name`. */
export interface HubServer {
  readonly endpoint: string;
  /** Requests so far. */
  readonly seen: Seen[];
  /** The listing; tests may change it. */
  listing: unknown[];
  /** Called first for each request; true means it has answered. */
  intercept: (request: IncomingMessage, response: ServerResponse, file: string | undefined) => boolean;
  close(): Promise<void>;
}

/** An entry of a listing: files over 1000 bytes are kept as large files, with a SHA-256. */
export function entryOf(path: string, bytes: Uint8Array): Record<string, unknown> {
  const sha1 = createHash("sha1").update(`blob ${bytes.byteLength}\0`).update(bytes).digest("hex");
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  const entry = { type: "file", path, size: bytes.byteLength, oid: sha1 };
  return bytes.byteLength > 1000 ? { ...entry, lfs: { oid: sha256, size: bytes.byteLength, pointerSize: 130 } } : entry;
}

/** Starts the server on a free port of 127.0.0.1. */
export async function startHub(files: Record<string, Uint8Array>): Promise<HubServer> {
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url!, "http://hub");
    const range = request.headers.range;
    hub.seen.push({ path: request.url!, range, authorization: request.headers.authorization });
    const file = /^\/owner\/name\/resolve\/main\/(.+)$/.exec(pathname)?.[1];
    if (hub.intercept(request, response, file)) return;
    if (pathname === "/api/models/owner/name/tree/main") {
      response.setHeader("content-type", "application/json");
      response.end(JSON.stringify(hub.listing));
    } else if (file !== undefined && Object.hasOwn(files, file)) {
      const bytes = files[file];
      const from = Number(/^bytes=(\d+)-$/.exec(range ?? "")?.[1] ?? 0);
      if (range !== undefined) {
        response.statusCode = 206;
        response.setHeader("content-range", `bytes ${from}-${bytes.byteLength - 1}/${bytes.byteLength}`);
      }
      response.setHeader("content-length", bytes.byteLength - from);
      response.end(bytes.subarray(from));
    } else {
      response.statusCode = 404;
      response.end("not found");
    }
  });
  await new Promise<void>((ready) => server.listen(0, "127.0.0.1", ready));
  const hub: HubServer = {
    endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    seen: [],
    listing: Object.entries(files).map(([path, bytes]) => entryOf(path, bytes)),
    intercept: () => false,
    close: () =>
      new Promise((closed) => {
        server.close(() => closed());
        server.closeAllConnections();
      }),
  };
  return hub;
}

/** Sends the head and the first `count` bytes of an answer, then breaks the connection. */
export function cut(response: ServerResponse, bytes: Uint8Array, from: number, count: number): void {
  response.statusCode = from > 0 ? 206 : 200;
  if (from > 0) response.setHeader("content-range", `bytes ${from}-${bytes.byteLength - 1}/${bytes.byteLength}`);
  response.setHeader("content-length", bytes.byteLength - from);
  response.write(bytes.subarray(from, from + count), () => setTimeout(() => response.destroy(), 30));
}
