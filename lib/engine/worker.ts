/**
 * The thread that owns the device: every native call of a server is made here, so that the thread that talks to clients
 * never waits for one. Messages in: {@linkcode ToThread}; out: {@linkcode FromThread}, one a step at most.
 *
 * @module
 */

import { setImmediate } from "node:timers";
import { serveMessages } from "./thread.ts";

// The global of a dedicated worker; the types of the main thread are in force here.
const scope = globalThis as unknown as {
  postMessage(message: unknown): void;
  onmessage: ((event: { data: unknown }) => void) | null;
};

serveMessages({
  post: (message) => scope.postMessage(message),
  listen: (receive) => scope.onmessage = ({ data }) => receive(data as never),
  turn: () => new Promise((resolve) => setImmediate(resolve)),
});
