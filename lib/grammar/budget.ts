/**
 * What compiling one schema may cost.
 *
 * @module
 */

/** A schema that cannot be a grammar: the message names the place and what is not supported. */
export class SchemaError extends RangeError {
  /** Always "SchemaError". */
  override readonly name: string = "SchemaError";
}

/** Steps of work that one schema may take: rules, states and sets of characters made. About 0.1 s. */
const MOST_STEPS = 250_000;

/** Milliseconds that one schema may take, as a last resort. */
const MOST_MILLISECONDS = 3000;

/** The work that is left for a schema. */
export class Budget {
  #left = MOST_STEPS;
  readonly #until = performance.now() + MOST_MILLISECONDS;

  /** Takes steps. Throws {@link SchemaError} where none are left. */
  spend(steps: number): void {
    const before = this.#left >> 10;
    this.#left -= steps;
    if (this.#left < 0 || (this.#left >> 10 !== before && performance.now() > this.#until)) {
      throw new SchemaError("the schema takes too much work to compile: too many alternatives, states or combinations");
    }
  }
}
