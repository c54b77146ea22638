/**
 * Calls of Llama 3: an answer that is `{"name": ..., "parameters": {...}}`, and after `<|python_tag|>` such an object or code.
 * Source: https://github.com/meta-llama/llama-models/blob/main/models/llama3_3/prompt_format.md
 *
 * @module
 */

import { byte, choice, empty, literal, repeat, type Rule, sequence, without } from "../grammar/rule.ts";
import type { ToolForm } from "./form.ts";
import { callObject } from "./hermes.ts";
import { jsonCall } from "./json_call.ts";
import type { ReadContext, Reading, Sink, Source } from "./reader.ts";

const TAG = "<|python_tag|>";

/** Names under which clients offer an interpreter. */
const INTERPRETERS: readonly string[] = ["python", "ipython", "code_interpreter"];

/** Code after the tag: a call of a built-in tool, `name.call(key="value")`, or code for the interpreter that is offered. */
export function codeCall(code: string, sink: Sink, { tools }: ReadContext): void {
  const builtin = /^\s*(\w+)\.call\(([\s\S]*)\)\s*$/.exec(code);
  if (builtin) {
    const values = [...builtin[2].matchAll(/(\w+)\s*=\s*("(?:[^"\\]|\\.)*"|[^,]+)/g)].map(([, key, text]) => {
      try {
        return [key, JSON.parse(text)];
      } catch {
        return [key, text.trim()];
      }
    });
    sink.begin(builtin[1]);
    sink.arguments(JSON.stringify(Object.fromEntries(values)));
    return;
  }
  const interpreter = tools.find(({ name }) => INTERPRETERS.includes(name));
  if (!interpreter) return sink.content(code);
  sink.begin(interpreter.name);
  sink.arguments(JSON.stringify({ code }));
}

/** The form. */
export const llama3: ToolForm = {
  name: "llama3",
  controls: [TAG],
  detect: (template) => template.includes(TAG) || template.includes('"parameters": dictionary of argument name'),
  *read(source: Source, sink: Sink, context): Reading {
    const accept = (name: string): boolean => context.tools.some((tool) => tool.name === name);
    for (let tagged = false;; tagged = true) {
      let lead = yield* source.spaces(), code = "";
      // A bare object is a call only where it names a tool: any other is an answer in JSON.
      while ((yield* source.peek()) === "{") {
        const other = yield* jsonCall(source, sink, accept, !tagged);
        if (other !== undefined) {
          sink.content(lead + other);
          lead = "";
          break;
        }
        if (context.single) return;
        lead = yield* source.spaces();
        yield* source.starts(";", ",");
        yield* source.spaces();
      }
      const tag = yield* source.until([TAG], (text) => {
        if (tagged) code += text;
        else sink.content(lead + text);
        lead = "";
      });
      if (code.trim() !== "") codeCall(code, sink, context);
      if (tag === undefined || (context.single && sink.calls > 0)) return;
    }
  },
  write: (name, json) => `{"name": ${JSON.stringify(name)}, "parameters": ${json}}`,
  calls(allowed, several): Rule {
    const one = choice(...allowed.map((call) => callObject(call, "parameters")));
    return several ? sequence(one, repeat(sequence(literal("; "), one))) : one;
  },
  free(allowed, several): Rule {
    // Text begins with anything but a space or the brace of a call.
    const start = byte([0x21, 0x7a], [0x7c, 0x7e], [0xc2, 0xf4]);
    return choice(empty, sequence(start, without()), this.calls(allowed, several));
  },
};
