/**
 * A server: an engine, the routes over it and a socket.
 *
 * @module
 */

import { Engine, type EngineOptions } from "../engine/engine.ts";
import { type App, type AppOptions, createApp } from "./app.ts";
import { listen, type Listener } from "./listen.ts";
import { isLoopback } from "./origin.ts";

/** Settings of {@linkcode serve}. */
export interface ServeOptions extends EngineOptions, AppOptions {
  /** Address to listen at. Default "127.0.0.1". */
  hostname?: string;
  /** Port; 0 takes a free one. Default 8000. */
  port?: number;
  /** Called with bytes of weights read and in all. */
  onProgress?: (bytes: number, total: number) => void;
}

/** A running server. */
export interface Server {
  /** Where it listens. */
  readonly url: string;
  /** The engine behind it. */
  readonly engine: Engine;
  /** The routes. */
  readonly app: App;
  /** Resolves when the model is loaded; rejects with what went wrong. */
  readonly ready: Promise<unknown>;
  /** Resolves with what went wrong, should the engine fail. Nothing is answered from then on: close the server, or end the process. */
  readonly failed: Promise<Error>;
  /**
   * Shuts down: takes no more requests, lets running ones end for up to `grace` seconds (default 30), ends the others
   * with an error, closes the socket and frees the device. It takes no more than some seconds longer than that, whatever
   * hangs.
   */
  close(grace?: number): Promise<void>;
}

/**
 * Starts a server. It listens as soon as this resolves, and answers 503 until the model is loaded. At an address of loopback it
 * answers to the names of loopback alone, and to `hosts`. Rejects where the port is taken, and for settings that cannot be.
 */
export async function serve(options: ServeOptions = {}): Promise<Server> {
  const { hostname = "127.0.0.1", port = 8000, hosts = isLoopback(hostname) ? [] : undefined } = options;
  const engine = new Engine(options, options.onProgress);
  let app: App;
  try {
    app = createApp(engine, { ...options, hosts });
  } catch (error) {
    await engine.close();
    throw error;
  }
  let listener: Listener;
  try {
    listener = await listen(hostname, port, app.fetch);
  } catch (error) {
    await engine.close();
    app[Symbol.dispose]();
    throw error;
  }
  void engine.failed.then(({ message }) =>
    options.log?.({ time: new Date().toISOString(), error: "engine_failed", detail: message })
  );
  let closing: Promise<void> | undefined;
  const close = async (grace: number): Promise<void> => {
    app.drain();
    const until = performance.now() + grace * 1000;
    while (app.active > 0 && performance.now() < until) await new Promise((resolve) => setTimeout(resolve, 50));
    await engine.close();
    // What was cut off is told so, in a last event.
    const last = performance.now() + 1000;
    while (app.active > 0 && performance.now() < last) await new Promise((resolve) => setTimeout(resolve, 10));
    await listener.stop();
    app[Symbol.dispose]();
  };
  return {
    url: `http://${hostname.includes(":") ? `[${hostname}]` : hostname}:${listener.port}`,
    engine,
    app,
    ready: engine.ready,
    failed: engine.failed,
    close: (grace = 30) => closing ??= close(grace),
  };
}
