/**
 * Lines of a log that never hold the server up: they are written one after the other in the background, and where nobody
 * takes them, they are lost and counted.
 *
 * @module
 */

import { write } from "node:fs";

/** One line of the log. */
export type LogEntry = Record<string, string | number | boolean | null | undefined>;

/** Bytes that wait to be written at most, where nothing else is said. */
const MOST = 1 << 20;

/** Milliseconds until a file descriptor that takes nothing is tried again. */
const PAUSE = 50;

/** Writes the beginning of some bytes without holding the thread up, and says how many. */
export type Writer = (bytes: Uint8Array) => Promise<number>;

/** The standard output. Under Deno (2.9.6) `node:fs` and `process.stdout` hold the thread up where nobody reads. */
export function standardOutput(): Writer {
  const { Deno } = globalThis as unknown as { Deno?: { stdout: { write: Writer } } };
  if (Deno) return (bytes) => Deno.stdout.write(bytes);
  return (bytes) =>
    new Promise((resolve, reject) =>
      write(1, bytes, 0, bytes.length, null, (error, written) => error ? reject(error) : resolve(written))
    );
}

/** A log that a writer writes. */
export class LineLog {
  readonly #writer: Writer;
  readonly #most: number;
  #waiting: Uint8Array[] = [];
  #bytes = 0;
  #lost = 0;
  #writing = false;

  /** `most`: bytes that wait to be written at most, default 1 MiB. */
  constructor(writer: Writer, most: number = MOST) {
    this.#writer = writer;
    this.#most = most;
  }

  /** Lines that were lost and are not told yet. */
  get lost(): number {
    return this.#lost;
  }

  /** Writes a line, later; or loses it. */
  line(text: string): void {
    const bytes = new TextEncoder().encode(`${text}\n`);
    if (this.#bytes + bytes.length > this.#most) return void this.#lost++;
    this.#waiting.push(bytes);
    this.#bytes += bytes.length;
    if (!this.#writing) void this.#write();
  }

  /** Writes what waits, many lines at once. */
  async #write(): Promise<void> {
    this.#writing = true;
    while (this.#waiting.length > 0) {
      const lines = this.#waiting, bytes = Buffer.concat(lines);
      this.#waiting = [];
      try {
        for (let done = 0; done < bytes.length;) done += await this.#some(bytes.subarray(done));
        this.#tellLost();
      } catch { // nobody reads any more, or the disk is full
        this.#lost += lines.length;
      }
      this.#bytes -= bytes.length;
    }
    this.#writing = false;
  }

  async #some(bytes: Uint8Array): Promise<number> {
    try {
      return await this.#writer(bytes);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
      return 0;
    }
  }

  #tellLost(): void {
    if (this.#lost === 0) return;
    const bytes = new TextEncoder().encode(`${JSON.stringify({ time: new Date().toISOString(), lost: this.#lost })}\n`);
    this.#lost = 0;
    this.#waiting.push(bytes);
    this.#bytes += bytes.length;
  }

  /** Waits until all is written, but no longer than so many milliseconds. */
  async flush(most: number = 500): Promise<void> {
    const until = performance.now() + most;
    while (this.#writing && performance.now() < until) await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** What may be told of a path that leads nowhere: clients put keys and prompts into them. */
export function knownPath(path: string, routes: readonly string[]): string {
  const known = new Set(routes.flatMap((route) => route.split("/")).filter((part) => /^[\w.-]+$/.test(part)));
  known.add("");
  const parts = path.split("/").slice(1), end = parts.findIndex((part) => !known.has(part));
  return `/${(end < 0 ? parts : [...parts.slice(0, end), "..."]).join("/")}`;
}
