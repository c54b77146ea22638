/**
 * A server: an engine, the routes over it and a socket.
 *
 * @module
 */

import { Engine, type EngineOptions } from "../engine/engine.ts";
import { type App, type AppOptions, createApp } from "./app.ts";
import { listen, type Listener } from "./listen.ts";

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
  /**
   * Shuts down: takes no more requests, lets running ones end for up to `grace` seconds (default 30), ends the others
   * with an error, closes the socket and frees the device.
   */
  close(grace?: number): Promise<void>;
}

/**
 * Starts a server. It listens as soon as this resolves, and answers 503 until the model is loaded. Rejects where the port
 * is taken.
 */
export async function serve(options: ServeOptions = {}): Promise<Server> {
  const { hostname = "127.0.0.1", port = 8000 } = options;
  const engine = new Engine(options, options.onProgress), app = createApp(engine, options);
  let listener: Listener;
  try {
    listener = await listen(hostname, port, app.fetch);
  } catch (error) {
    await engine.close();
    app[Symbol.dispose]();
    throw error;
  }
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
    close: (grace = 30) => closing ??= close(grace),
  };
}
