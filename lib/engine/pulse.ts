/**
 * Whether a thread is alive: it is asked again and again, and answers between what it does.
 *
 * @module
 */

/** Milliseconds between two questions. */
const INTERVAL = 1000;

/** The signs of life of a thread. */
export class Pulse {
  readonly #ask: () => void;
  readonly #watch: (seconds: number) => void;
  #timer: ReturnType<typeof setInterval> | undefined;
  /** When the question was asked that has no answer yet. */
  #asked: number | undefined;

  /** `ask` asks the thread; `watch` is told again and again for how long there was no answer. */
  constructor(ask: () => void, watch: (seconds: number) => void) {
    this.#ask = ask;
    this.#watch = watch;
  }

  /** Begins to ask. */
  begin(): void {
    this.#timer = setInterval(() => {
      this.#watch(this.silence);
      if (this.#asked !== undefined) return;
      this.#asked = performance.now();
      this.#ask();
    }, INTERVAL);
    (this.#timer as { unref?: () => void }).unref?.();
  }

  /** An answer came. */
  beat(): void {
    this.#asked = undefined;
  }

  /** Seconds since a question that has no answer. */
  get silence(): number {
    return this.#asked === undefined ? 0 : (performance.now() - this.#asked) / 1000;
  }

  /** Asks no more. */
  end(): void {
    clearInterval(this.#timer);
    this.#asked = undefined;
  }
}
