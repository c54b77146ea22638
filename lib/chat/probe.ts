/**
 * What a chat template can do, found by rendering small chats with it: names of models and files say nothing of it.
 *
 * @module
 */

import type { ChatMessage, ChatTemplateOptions } from "../tokenizer/tokenizer.ts";

/** What a template can do. */
export interface Abilities {
  /** It takes a system message. */
  readonly system: boolean;
  /** It writes down tools. */
  readonly tools: boolean;
  /** It writes down calls and their results, and takes the calls' arguments like this; undefined where it does not. */
  readonly calls: CallStyle | undefined;
}

/** How a template takes calls. */
export interface CallStyle {
  /** Arguments are objects, not JSON text. */
  readonly objects: boolean;
  /** Ids have nine letters and digits, as Mistral's templates want. */
  readonly shortIds: boolean;
  /** A message may have several calls. */
  readonly several: boolean;
}

/** Renders a chat. */
export type Render = (messages: readonly ChatMessage[], options?: ChatTemplateOptions) => string;

const KEY = "probekey", TOOL = "probetool", OTHER = "othertool", RESULT = "probe result";

/** A tool of which a template can write everything down. */
function tool(name: string): unknown {
  const properties = { [KEY]: { type: "string", description: "a text" } };
  const parameters = { type: "object", properties, required: [KEY] };
  return { type: "function", function: { name, description: "a tool", parameters } };
}

const tools = [tool(TOOL), tool(OTHER)];
const asked: ChatMessage = { role: "user", content: "probe question" };

/** Finds out what a template can do. */
export function probe(render: Render): Abilities {
  const text = (messages: readonly ChatMessage[], options?: ChatTemplateOptions): string => {
    try {
      return render(messages, options);
    } catch { // which is what is asked here: whether it takes this
      return "";
    }
  };
  const called = (names: readonly string[], objects: boolean, shortIds: boolean): string => {
    const value = { [KEY]: "probe value" }, id = (i: number) => shortIds ? `probeid0${i}` : `call_0123456789abcdef${i}`;
    const calls = names.map((name, i) => ({
      id: id(i),
      type: "function",
      function: { name, arguments: objects ? value : JSON.stringify(value) },
    }));
    return text([
      asked,
      { role: "assistant", content: "", tool_calls: calls },
      ...names.map((name, i) => ({ role: "tool", tool_call_id: id(i), name, content: `${RESULT} ${i}` })),
    ], { tools });
  };
  // Without tools in the prompt, names are those of calls only.
  const written = (text: string, names: readonly string[]): boolean =>
    text.includes(KEY) && text.includes("probe value") && !text.includes(`'probe value'`) &&
    !text.includes(`\\"${KEY}`) && names.every((_, i) => text.includes(`${RESULT} ${i}`));
  let calls: CallStyle | undefined;
  for (const shortIds of [false, true]) {
    for (const objects of [true, false]) {
      if (calls || !written(called([TOOL], objects, shortIds), [TOOL])) continue;
      const both = called([TOOL, OTHER], objects, shortIds);
      calls = {
        objects,
        shortIds,
        several: written(both, [TOOL, OTHER]) && both.split("probe value").length > 2,
      };
    }
  }
  const greeting = [{ role: "system", content: "probe system" }, asked];
  return {
    system: (text(greeting) || text(greeting, { tools })).includes("probe system"),
    tools: text([asked], { tools }).includes(TOOL),
    calls,
  };
}
