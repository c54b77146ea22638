/**
 * Tools that a model may call, and the pieces of an answer: text, reasoning and calls.
 *
 * @module
 */

/** A function that the model may ask to be called. */
export interface Tool {
  /** Its name. */
  readonly name: string;
  /** What it does, for the model. */
  readonly description?: string;
  /** JSON schema of its arguments. Default: an object of anything. */
  readonly parameters?: Readonly<Record<string, unknown>>;
  /** Whether calls must follow the schema, also where the model may answer without a call. Default false. */
  readonly strict?: boolean;
}

/** Whether the model calls: not at all, as it likes, at least once, or this tool once. */
export type ToolChoice = "none" | "auto" | "required" | { readonly name: string };

/** A part of a call, in the order it is written: first id and name, then its arguments in pieces of JSON. */
export interface CallDelta {
  /** Which call of the answer, from 0 on. */
  readonly index: number;
  /** Set where the call begins. */
  readonly id?: string;
  /** Set where the call begins. */
  readonly name?: string;
  /** JSON text that goes on where the last piece ended. */
  readonly arguments: string;
}

/** What became certain of an answer. */
export interface ChatPiece {
  /** Text for the user. */
  text: string;
  /** What the model wrote to itself before. */
  reasoning: string;
  /** Parts of calls. */
  calls: CallDelta[];
}
