/**
 * Stop strings in streamed text.
 *
 * @module
 */

/** What a {@link StopMatcher} lets through. */
export interface StopResult {
  /** Text that is certain to stand before any stop string. */
  readonly text: string;
  /** Whether a stop string was met; it is not part of `text`, nor is anything after it. */
  readonly stopped: boolean;
  /** The stop string that was met. */
  readonly stop?: string;
}

/** A stop string that can't be one. */
export class StopError extends RangeError {
  /** Always "StopError". */
  override readonly name: string = "StopError";
}

/**
 * Finds the first stop string in a text that comes in pieces, and never lets a part of one through: it holds back the
 * longest end of the text that may begin a stop string. The first to be complete wins; of those that complete at the same
 * character, the longest. The result does not depend on how the text is cut into pieces.
 */
export class StopMatcher {
  readonly #stops: readonly string[];
  #held = "";
  #stopped: string | undefined;

  /** Throws StopError where a stop string is empty. */
  constructor(stops: readonly string[]) {
    if (stops.includes("")) throw new StopError("a stop string is empty; leave it out");
    this.#stops = [...stops];
  }

  /** Takes a piece of text. After a stop string was met it lets nothing through. */
  push(text: string): StopResult {
    if (this.#stopped !== undefined) return { text: "", stopped: true, stop: this.#stopped };
    const all = this.#held + text;
    let first: { start: number; end: number; stop: string } | undefined;
    for (const stop of this.#stops) {
      const start = all.indexOf(stop);
      if (start < 0) continue;
      const end = start + stop.length;
      if (!first || end < first.end || (end === first.end && start < first.start)) first = { start, end, stop };
    }
    if (first) {
      this.#held = "";
      this.#stopped = first.stop;
      return { text: all.slice(0, first.start), stopped: true, stop: first.stop };
    }
    const kept = this.#heldLength(all);
    this.#held = all.slice(all.length - kept);
    return { text: all.slice(0, all.length - kept), stopped: false };
  }

  /** The text held back, at the end of the generation. */
  flush(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }

  /** Length of the longest end of `text` that begins a stop string without completing it. */
  #heldLength(text: string): number {
    let longest = 0;
    for (const stop of this.#stops) {
      for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
        if (text.endsWith(stop.slice(0, length))) longest = length;
      }
    }
    return longest;
  }
}
