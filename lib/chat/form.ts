/**
 * What a form of calls is: marks that its templates are known by, a reading and a grammar.
 *
 * @module
 */

import type { Rule } from "../grammar/rule.ts";
import type { ReadContext, Reading, Sink, Source } from "./reader.ts";

/** A call that a grammar allows. */
export interface AllowedCall {
  /** The tool's name. */
  readonly name: string;
  /** Its arguments. */
  readonly arguments: Rule;
}

/** A way of writing calls. */
export interface ToolForm {
  /** Its name, for options. */
  readonly name: string;
  /** The control tokens that are part of it. */
  readonly controls: readonly string[];
  /** Whether a template, which was written for this form, is known by its text. */
  detect(template: string): boolean;
  /** Reads text and calls; see {@link Source}. */
  read(source: Source, sink: Sink, context: ReadContext): Reading;
  /** A call as the form has it; `json` are its arguments. */
  write(name: string, json: string): string;
  /** An answer that is one of these calls, or with `several` one after the other. */
  calls(allowed: readonly AllowedCall[], several: boolean): Rule;
  /** An answer that may hold text, and these calls after it. Calls in the form to other tools cannot be begun. */
  free(allowed: readonly AllowedCall[], several: boolean): Rule;
  /** An answer that is text of this rule and no call, where text has marks around it too. */
  text?(text: Rule): Rule;
}
