/**
 * The forms in which models write calls.
 *
 * @module
 */

import type { ToolForm } from "./form.ts";
import { functionary31, functionary32 } from "./functionary.ts";
import { harmony } from "./harmony.ts";
import { hermes } from "./hermes.ts";
import { llama3 } from "./llama.ts";
import { mistral, mistralArguments } from "./mistral.ts";

/** All forms; a template is of the first one that knows it. */
export const TOOL_FORMS: readonly ToolForm[] = [
  harmony,
  functionary32,
  functionary31,
  mistralArguments,
  mistral,
  hermes,
  llama3,
];

/** The form of a template, or undefined where none knows it. */
export function formOf(template: string): ToolForm | undefined {
  return TOOL_FORMS.find((form) => form.detect(template));
}

/** The form of a name. Throws RangeError that lists those that there are. */
export function formNamed(name: string): ToolForm {
  const found = TOOL_FORMS.find((form) => form.name === name);
  if (found) return found;
  throw new RangeError(`there is no tool form "${name}"; there are ${TOOL_FORMS.map(({ name }) => name).join(", ")}`);
}
