/**
 * Chats with a model: how tools and calls get into its prompt, and how its answer is held to a form and read.
 *
 * @module
 */

import { randomBytes } from "node:crypto";
import { choice, control, literal, repeat, type Rule, sequence, without } from "../grammar/rule.ts";
import { json, SchemaError } from "../grammar/json_schema.ts";
import type { ChatMessage, ChatTemplateOptions, Tokenizer } from "../tokenizer/tokenizer.ts";
import type { AllowedCall, ToolForm } from "./form.ts";
import { formNamed, formOf } from "./forms.ts";
import { templateHistory, textHistory, toolText, withSystemText } from "./history.ts";
import { hermes } from "./hermes.ts";
import { type Abilities, probe } from "./probe.ts";
import { ChatReader, CONTROL, type ThinkingMarks } from "./reader.ts";
import type { Tool, ToolChoice } from "./tool.ts";

/** What a chat's answer may be, and how its prompt is made. */
export interface ChatOptions {
  /** Tools that the model may call. Default none. */
  readonly tools?: readonly Tool[];
  /** Whether it calls. Default "auto". */
  readonly toolChoice?: ToolChoice;
  /** Whether an answer may have several calls. Default true. */
  readonly parallelToolCalls?: boolean;
  /** Whether reasoning comes apart from the text, where the template has marks for it. Default true. */
  readonly reasoning?: boolean;
  /** Further variables of the template. */
  readonly variables?: Readonly<Record<string, unknown>>;
  /** Whether the prompt ends with the start of the answer. Default true, but for `continueFinal`. */
  readonly addGenerationPrompt?: boolean;
  /** Whether the answer goes on with the last message. Default false. */
  readonly continueFinal?: boolean;
}

/** A chat as the tokenizer's template takes it. */
export interface PreparedChat {
  /** Its messages. */
  readonly messages: readonly ChatMessage[];
  /** How they are rendered. */
  readonly options: ChatTemplateOptions;
}

/** Marks of reasoning, as templates write them. */
const THINKING: readonly ThinkingMarks[] = [
  { open: "<think>", close: "</think>" },
  { open: "[THINK]", close: "[/THINK]" },
  { open: "<seed:think>", close: "</seed:think>" },
];

type Json = Record<string, unknown>;

/** Milliseconds that the schemas of a request's tools may take: nobody else is served meanwhile. */
const MOST_MILLISECONDS = 150;

/** Free text up to and with a mark, whether it is a control token or text. */
function through(mark: string): Rule {
  return sequence(without(mark), control(mark));
}

/** The chats of one model. */
export class Chat {
  /** How calls are written. */
  readonly form: ToolForm;
  /** Whether tools are in the prompt by the model's own template, or by the built-in text. */
  readonly toolPrompt: "model" | "built-in";
  /** Marks of reasoning that the template knows. */
  readonly thinking: ThinkingMarks | undefined;
  /** Control tokens that are read: those of the form and the marks of reasoning, each with the text that it leaves. */
  readonly visible: ReadonlyMap<number, string>;
  readonly #controls: ReadonlySet<string>;
  readonly #abilities: Abilities;

  /**
   * `plain`: the model's template is not used. `form`: a name of {@link ToolForm}; default: that of the template, and "hermes"
   * where it knows none. Throws RangeError where there is no such form.
   */
  constructor(tokenizer: Tokenizer, plain: boolean, form?: string) {
    const source = plain ? "" : tokenizer.chatTemplate(true) ?? "", known = formOf(source);
    this.form = form === undefined ? known ?? hermes : formNamed(form);
    this.thinking = THINKING.find(({ close }) => source.includes(close));
    this.#abilities = source === ""
      ? { system: true, tools: false, calls: undefined }
      : probe((messages, options) => tokenizer.applyChatTemplate(messages, options));
    // Tools of a template whose answers cannot be read are of no use.
    const own = this.#abilities.tools && (known !== undefined || form !== undefined);
    this.toolPrompt = own ? "model" : "built-in";
    const marks = [...this.form.controls, ...(this.thinking ? [this.thinking.open, this.thinking.close] : [])];
    const ids = marks.map((mark) => [tokenizer.tokenId(mark), mark] as const)
      .filter((entry): entry is [number, string] => entry[0] !== undefined && tokenizer.vocabulary.isSpecial(entry[0]));
    this.visible = new Map(ids.map(([id, mark]) => [id, CONTROL + mark]));
    this.#controls = new Set(ids.map(([, mark]) => mark));
  }

  /** The tools that an answer may call. */
  #tools({ tools = [], toolChoice = "auto" }: ChatOptions): readonly Tool[] {
    if (toolChoice === "none") return [];
    if (typeof toolChoice === "string") return tools;
    return tools.filter(({ name }) => name === toolChoice.name);
  }

  /** Messages and tools as the template takes them. */
  prepare(messages: readonly ChatMessage[], options: ChatOptions = {}): PreparedChat {
    const { variables, continueFinal = false } = options, { calls, system } = this.#abilities;
    // All tools, so that prompts that differ in the choice alone begin alike.
    const tools = options.toolChoice === "none" ? [] : options.tools ?? [];
    const model = this.toolPrompt === "model";
    let all = model && calls ? templateHistory(messages, calls) : textHistory(messages, this.form);
    if (this.form.name === "harmony") all = all.map(harmonyThinking);
    if (!model && tools.length > 0) all = withSystemText(all, toolText(tools, this.form), system);
    const told = model ? tools.map(templateTool) : [];
    return {
      messages: all,
      options: {
        ...(told.length > 0 ? { tools: told } : {}),
        ...(variables ? { variables } : {}),
        addGenerationPrompt: options.addGenerationPrompt ?? !continueFinal,
        ...(continueFinal ? { continueFinal } : {}),
      },
    };
  }

  /** Whether a prompt with this end leaves the model inside of its reasoning. */
  thinks(promptEnd: string): boolean {
    return this.thinking !== undefined && promptEnd.trimEnd().endsWith(this.thinking.open);
  }

  /** What reads an answer; undefined where all of it is text. `thinks`: see {@linkcode Chat.thinks}. */
  reader(options: ChatOptions, thinks: boolean): ChatReader | undefined {
    const tools = this.#tools(options),
      { form } = this,
      thinking = options.reasoning === false ? undefined : this.thinking;
    // Where text has marks too, it is read without tools as well.
    const read = tools.length > 0 || form.text ? form.read : undefined;
    if (!read && !thinking) return undefined;
    const { parallelToolCalls, toolChoice } = options, named = typeof toolChoice === "object";
    const single = parallelToolCalls === false || named,
      forced = tools.length > 0 && (named || toolChoice === "required");
    return new ChatReader({
      tools,
      single,
      forced,
      read,
      thinking,
      thinks,
      controls: this.#controls,
      id: form.name.startsWith("mistral") ? id9 : id24,
    });
  }

  /** Whether an answer must call. */
  #forces({ toolChoice }: ChatOptions): boolean {
    return typeof toolChoice === "object" || toolChoice === "required";
  }

  /** Whether an answer must follow a rule; `schema`: see {@linkcode Chat.rule}. */
  constrains(options: ChatOptions, schema: true | Json | undefined): boolean {
    const tools = this.#tools(options), forces = this.#forces(options);
    return schema !== undefined || (tools.length > 0 && (forces || tools.some(({ strict }) => strict)));
  }

  /**
   * The rule that an answer must follow. `schema`: of its text, `true` for any JSON object. Throws SchemaError for that schema, and
   * for a strict tool's, which cannot be a rule.
   */
  rule(options: ChatOptions, thinks: boolean, schema?: true | Json): Rule {
    const { toolChoice = "auto", parallelToolCalls = true } = options, { form } = this, tools = this.#tools(options);
    const said = schema === undefined ? undefined : json(schema === true ? { type: "object" } : schema);
    const text = said && form.text ? form.text(said) : said,
      several = parallelToolCalls && typeof toolChoice === "string";
    const calls = tools.length === 0 ? undefined : allowedCalls(tools);
    const rule = !calls
      ? text ?? without()
      : this.#forces(options)
      ? form.calls(calls, several)
      : text
      ? choice(form.calls(calls, several), text)
      : form.free(calls, several);
    if (!this.thinking) return rule;
    const { open, close } = this.thinking, rest = sequence(through(close), repeat(literal("\n"), 0, 2), rule);
    return thinks ? rest : choice(rule, sequence(control(open), rest));
  }
}

/** The tools' calls. Throws SchemaError where their schemas together take too long. */
function allowedCalls(tools: readonly Tool[]): AllowedCall[] {
  const until = performance.now() + MOST_MILLISECONDS;
  return tools.map((tool) => {
    if (performance.now() > until) {
      throw new SchemaError(
        "the schemas of all tools together take too much work to compile; give fewer, or simpler ones",
      );
    }
    return { name: tool.name, arguments: argumentsRule(tool) };
  });
}

/** The rule of a tool's arguments. */
function argumentsRule({ name, parameters = {}, strict }: Tool): Rule {
  try {
    return json({ type: "object", ...parameters });
  } catch (error) {
    if (!(error instanceof SchemaError)) throw error;
    if (strict) throw new SchemaError(`the tool ${name} is strict, and ${error.message}`);
    // As with OpenAI, the schema of a tool that is not strict is advice.
    return json({ type: "object" });
  }
}

/** A tool as templates print it: some stop at one without description or parameters. */
function templateTool({ name, description = "", parameters = { type: "object", properties: {} } }: Tool): unknown {
  return { type: "function", function: { name, description, parameters } };
}

/** gpt-oss's template has its own name for reasoning, and takes either it or a text beside a call. */
function harmonyThinking(message: ChatMessage): ChatMessage {
  const { reasoning_content: thinking, ...rest } = message;
  if (typeof thinking !== "string" || thinking === "" || (message.tool_calls && message.content)) return message;
  return { ...rest, thinking };
}

function id24(): string {
  return `call_${randomBytes(12).toString("hex")}`;
}

/** Mistral's templates want nine letters and digits. */
function id9(): string {
  return randomBytes(5).toString("hex").slice(0, 9);
}
