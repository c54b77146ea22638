/**
 * Text to token ids and back, and chat templates, from a model's Hugging Face files. The algorithms of
 * encoding are those of `@huggingface/tokenizers`.
 *
 * @module
 */

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { keepWordsWhole } from "./added.ts";
import { ContentMarks, passOverMarks } from "./contents.ts";
import { Detokenizer, type DetokenizerOptions } from "./detokenizer.ts";
import { endIds } from "./ends.ts";
import { JinjaTemplate } from "./jinja/render.ts";
import { type ChatMessage, plainMessages } from "./messages.ts";
import { checkPostprocessor } from "./postprocessor.ts";
import { corrected } from "./pretokenizer.ts";
import { type AddedToken, type DecoderDescription, TokenizerError, Vocabulary } from "./vocabulary.ts";

export { type ChatMessage } from "./messages.ts";
export { TokenizerError } from "./vocabulary.ts";

/** How a text is encoded. */
export interface EncodeOptions {
  /** Whether the tokens that the tokenizer puts around a text (begin of text) are added. Default true. */
  readonly addSpecialTokens?: boolean;
  /**
   * Whether the names of control tokens inside the text (`<|end_of_text|>`) become these tokens, as in Hugging Face
   * transformers. False takes them as plain text, which is what text of strangers should be. Default true.
   */
  readonly parseSpecialTokens?: boolean;
}

/** What a chat template is given besides the messages. */
export interface ChatTemplateOptions {
  /** Whether the text ends with the start of the assistant's answer. Default true. */
  readonly addGenerationPrompt?: boolean;
  /** Tools as JSON schemas, for templates that know them. */
  readonly tools?: readonly unknown[];
  /** Further variables of the template. */
  readonly variables?: Readonly<Record<string, unknown>>;
  /** Whether the text ends where the last message's content does, so that an answer goes on with it. Default false. */
  readonly continueFinal?: boolean;
}

/** Stop strings, told apart by how they are met. */
export interface Stops {
  /** Ids of those that are the names of control tokens: such a token ends the answer. */
  readonly ids: readonly number[];
  /** The others, sought in the text: for a StopMatcher. */
  readonly texts: readonly string[];
}

type Json = Record<string, unknown>;

/** What a tokenizer is made from. */
export interface TokenizerSource {
  /** The file, for messages. */
  readonly path: string;
  /** The content of a `tokenizer.json`. */
  readonly description: Record<string, unknown>;
  /** The content of a `tokenizer_config.json`. */
  readonly config: Record<string, unknown>;
  /** Ids that end a text or an answer, besides the configuration's `eos_token`. */
  readonly eosIds: readonly number[];
  /** Chat templates by name; "default" is the usual one. */
  readonly templates: ReadonlyMap<string, string>;
}

/** A model's tokenizer. */
export class Tokenizer {
  /** Ids and their bytes; what a {@link Detokenizer} is made from. */
  readonly vocabulary: Vocabulary;
  /** Id of the token that begins a text, or null. */
  readonly bosId: number | null;
  /**
   * Ids of the tokens that end a text or an answer: the tokenizer's own, those of generation_config.json, and added
   * tokens that are ends by their names (`<|im_end|>`, `<|eot_id|>`, `<end_of_turn>`, ...).
   */
  readonly eosIds: readonly number[];
  readonly #path: string;
  readonly #description: Json;
  readonly #config: Json;
  readonly #encoder: HuggingFaceTokenizer;
  #plainEncoder: HuggingFaceTokenizer | undefined;
  readonly #setMark: (mark: string) => void;
  readonly #marks: ContentMarks;
  readonly #templates: ReadonlyMap<string, string>;
  readonly #parsed = new Map<string, JinjaTemplate>();

  private constructor(source: TokenizerSource) {
    this.#path = source.path;
    this.#config = source.config;
    const { vocabulary, added, decoder } = checked(this.#path, source.description);
    const names = new Set(added.map(({ content }) => content));
    const known = (token: string): boolean => names.has(token) || Object.hasOwn(vocabulary, token);
    checkPostprocessor(this.#path, source.description.post_processor, known);
    try {
      this.#description = corrected(source.description);
      this.vocabulary = new Vocabulary(vocabulary, added, decoder);
      this.#encoder = new HuggingFaceTokenizer(this.#description, this.#config);
      keepWordsWhole(this.#encoder, added);
      this.#setMark = passOverMarks(this.#encoder);
    } catch (error) {
      throw new TokenizerError(`${this.#path}: ${(error as Error).message}`);
    }
    this.#marks = new ContentMarks(added.filter(({ special }) => special).map(({ content }) => content));
    this.bosId = this.#namedId("bos_token") ?? null;
    const eosId = this.#namedId("eos_token");
    const named = endIds((name) => {
      const id = this.tokenId(name);
      return id !== undefined && this.vocabulary.isAdded(id) ? id : undefined;
    });
    this.eosIds = [...new Set([...(eosId === undefined ? [] : [eosId]), ...source.eosIds, ...named])];
    this.#templates = source.templates;
  }

  /**
   * Opens the tokenizer in a model's folder: `tokenizer.json`, with `tokenizer_config.json`, `chat_template.jinja` and
   * `generation_config.json` where they are. Throws {@link TokenizerError} that names the file and the cause.
   */
  static open(folder: string): Tokenizer {
    const path = join(folder, "tokenizer.json"), description = readJson(path);
    const configPath = join(folder, "tokenizer_config.json");
    const config = existsSync(configPath) ? readJson(configPath) : {};
    const eosIds = generationEosIds(folder), templates = readTemplates(folder, configPath, config);
    return new Tokenizer({ path, description, config, eosIds, templates });
  }

  /** Makes a tokenizer from the contents of its files, wherever they come from. Throws {@link TokenizerError}. */
  static from(source: TokenizerSource): Tokenizer {
    return new Tokenizer(source);
  }

  /** One more than the largest token id. A model's embedding may have more rows. */
  get vocabularySize(): number {
    return this.vocabulary.size;
  }

  /** Whether the model has a chat template. */
  get hasChatTemplate(): boolean {
    return this.#templates.size > 0;
  }

  /** The source of the chat template, for chats with tools or without; undefined where the model has none. */
  chatTemplate(tools: boolean): string | undefined {
    return (tools ? this.#templates.get("tool_use") : undefined) ?? this.#templates.get("default");
  }

  /** The ids of a text. Throws {@link TokenizerError} where the vocabulary has no token for a part of it. */
  encode(text: string, options: EncodeOptions = {}): number[] {
    const encoder = options.parseSpecialTokens ?? true ? this.#encoder : this.#plain();
    const { ids } = encoder.encode(text, { add_special_tokens: options.addSpecialTokens ?? true });
    const missing = ids.findIndex((id) => id === undefined);
    if (missing >= 0) {
      throw new TokenizerError(`${this.#path}: no token for a part of the text, and no token for the unknown`);
    }
    return ids;
  }

  /**
   * The text of ids: the exact inverse of the encoding, without the clean-up of spaces that some configurations ask for.
   * Bytes that form no character become U+FFFD; ids without a token leave no text.
   */
  decode(ids: Iterable<number>, options: DetokenizerOptions = {}): string {
    const detokenizer = new Detokenizer(this.vocabulary, options);
    let text = "";
    for (const id of ids) text += detokenizer.push(id);
    return text + detokenizer.flush();
  }

  /** A streaming detokenizer for this vocabulary. */
  detokenizer(options: DetokenizerOptions = {}): Detokenizer {
    return new Detokenizer(this.vocabulary, options);
  }

  /** The exact bytes of a token; they may begin or end inside a UTF-8 character. See {@link Vocabulary.bytes}. */
  tokenBytes(id: number): Uint8Array {
    return this.vocabulary.bytes(id);
  }

  /** The id of a token by its spelling in the vocabulary (`<|im_end|>`), or undefined. */
  tokenId(token: string): number | undefined {
    return this.#encoder.token_to_id(token);
  }

  /**
   * Stop strings, told apart: control tokens leave no text, so a stop string that is the name of one (`<|im_end|>`) is
   * met as an id.
   */
  stops(strings: readonly string[]): Stops {
    const ids = strings.map((text) => this.#controlId(text));
    return { ids: ids.filter((id) => id !== undefined), texts: strings.filter((_, i) => ids[i] === undefined) };
  }

  /**
   * The text of a chat. It carries the begin token where the template puts it: encode it with `addSpecialTokens: false`.
   * With `tools`, a template named "tool_use" is taken where the model has one. As in transformers, `tools` and
   * `documents` are None where they are not given. Throws {@link TokenizerError} where the model has no template, the
   * template refuses the messages, or a message has a part that is not text.
   */
  applyChatTemplate(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    return this.#render(plainMessages(messages), options);
  }

  /**
   * A chat by the model's template, as text and as ids, with nothing but text in what the messages, the tools and the variables say: names of
   * control tokens that stand there do not become tokens. Throws as {@link Tokenizer.applyChatTemplate} does.
   */
  renderChat(
    messages: readonly ChatMessage[],
    options: ChatTemplateOptions = {},
  ): { readonly text: string; encode(): number[] } {
    const said = { messages: plainMessages(messages), options }, mark = this.#marks.markFor(said);
    const marked = this.#marks.marked(said, mark), text = this.#render(marked.messages, marked.options);
    return {
      text: text.replaceAll(mark, ""),
      encode: () => {
        this.#setMark(mark);
        try {
          return this.encode(text, { addSpecialTokens: false });
        } finally {
          this.#setMark("");
        }
      },
    };
  }

  #render(messages: readonly ChatMessage[], options: ChatTemplateOptions): string {
    const tools = options.tools?.length ? options.tools : undefined;
    const source = this.chatTemplate(tools !== undefined);
    if (source === undefined) {
      throw new TokenizerError(
        `${this.#path}: the model has no chat template (no chat_template.jinja, no chat_template in ` +
          "tokenizer_config.json): give it a plain prompt",
      );
    }
    const specials: Json = {};
    for (const name of Object.keys(this.#config)) {
      const text = name.endsWith("_token") ? tokenText(this.#config[name]) : undefined;
      if (text !== undefined) specials[name] = text;
    }
    const final = options.continueFinal ? messages.at(-1) : undefined;
    if (final) messages = [...messages.slice(0, -1), { ...final, content: `${final.content}${CUT}` }];
    try {
      let template = this.#parsed.get(source);
      if (!template) this.#parsed.set(source, template = new JinjaTemplate(source));
      const text = template.render({
        ...specials,
        documents: null,
        ...options.variables,
        messages,
        tools: tools ?? null,
        add_generation_prompt: options.addGenerationPrompt ?? true,
      });
      if (!final) return text;
      const end = text.lastIndexOf(CUT);
      if (end < 0) throw new Error("it leaves out the last message, which is to be gone on with");
      return text.slice(0, end);
    } catch (error) {
      throw new TokenizerError(`${this.#path}: the model's chat template failed: ${(error as Error).message}`);
    }
  }

  /** An encoder that knows the control tokens' ids but does not look for their names in the text. */
  #plain(): HuggingFaceTokenizer {
    if (this.#plainEncoder) return this.#plainEncoder;
    const added = (this.#description.added_tokens ?? []) as AddedToken[];
    const model = this.#description.model as { vocab: Record<string, number> };
    const vocab = { ...model.vocab, ...Object.fromEntries(added.map(({ content, id }) => [content, id])) };
    const plain = added.filter((token) => !token.special);
    this.#plainEncoder = new HuggingFaceTokenizer({
      ...this.#description,
      model: { ...model, vocab },
      added_tokens: plain,
    }, this.#config);
    keepWordsWhole(this.#plainEncoder, plain);
    return this.#plainEncoder;
  }

  /** The id of a control token by its name, or undefined where there is none or it is text. */
  #controlId(name: string): number | undefined {
    const id = this.tokenId(name);
    return id !== undefined && this.vocabulary.isSpecial(id) ? id : undefined;
  }

  #namedId(name: string): number | undefined {
    const text = tokenText(this.#config[name]);
    return text === undefined ? undefined : this.#encoder.token_to_id(text);
  }
}

/** Stands where a text is to be cut: a character that no standard gives a meaning. */
const CUT = "\u{10fffd}";

/** A token in tokenizer_config.json is its text, or an object with it. */
function tokenText(value: unknown): string | undefined {
  if (typeof value === "string") return value;
  const content = (value as { content?: unknown } | null | undefined)?.content;
  return typeof content === "string" ? content : undefined;
}

function readText(path: string): string {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    const { code, message } = error as { code?: string; message: string };
    throw new TokenizerError(`${path}: ${code === "ENOENT" ? "no such file" : message}`);
  }
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new TokenizerError(`${path}: is not valid UTF-8`);
  }
  if (!text.startsWith("version https://git-lfs.github.com/spec/")) return text;
  throw new TokenizerError(
    `${path}: is a Git LFS pointer, not the file that it stands for; run "git lfs pull" in its repository, or download the file`,
  );
}

function readJson(path: string): Json {
  let value: unknown;
  try {
    value = JSON.parse(readText(path));
  } catch (error) {
    if (error instanceof TokenizerError) throw error;
    throw new TokenizerError(`${path}: is not valid JSON: ${(error as Error).message}`);
  }
  if (!isObject(value)) throw new TokenizerError(`${path}: is not a JSON object`);
  return value;
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Checks the parts of tokenizer.json that this runtime reads itself, and that its model is one of the Llama family's. */
function checked(path: string, description: Json): {
  vocabulary: Record<string, number>;
  added: AddedToken[];
  decoder: DecoderDescription | null;
} {
  const isId = (id: unknown): boolean => Number.isInteger(id) && (id as number) >= 0 && (id as number) < 1 << 24;
  const { model, added_tokens: added = [], decoder = null } = description;
  if (!isObject(model)) throw new TokenizerError(`${path}: model is missing or not an object`);
  if (model.type !== undefined && model.type !== "BPE") {
    throw new TokenizerError(`${path}: the model type ${JSON.stringify(model.type)} is not supported; supported: BPE`);
  }
  if (!isObject(model.vocab) || !Object.values(model.vocab).every(isId)) {
    throw new TokenizerError(`${path}: model.vocab is not an object of token ids`);
  }
  if (!Array.isArray(model.merges)) throw new TokenizerError(`${path}: model.merges is not a list`);
  if (
    !Array.isArray(added) ||
    !added.every((token) => isObject(token) && isId(token.id) && typeof token.content === "string")
  ) {
    throw new TokenizerError(`${path}: added_tokens is not a list of tokens with id and content`);
  }
  if (decoder !== null && !isObject(decoder)) throw new TokenizerError(`${path}: decoder is not an object`);
  return {
    vocabulary: model.vocab as Record<string, number>,
    added: added as AddedToken[],
    decoder: decoder as DecoderDescription | null,
  };
}

function generationEosIds(folder: string): number[] {
  const path = join(folder, "generation_config.json");
  if (!existsSync(path)) return [];
  const value = readJson(path).eos_token_id ?? [];
  const ids: unknown[] = Array.isArray(value) ? value : [value];
  if (!ids.every((id) => Number.isInteger(id) && (id as number) >= 0)) {
    throw new TokenizerError(`${path}: eos_token_id is neither a token id nor a list of them`);
  }
  return ids as number[];
}

/** Templates by name. A chat_template.jinja file stands above tokenizer_config.json, as in transformers. */
function readTemplates(folder: string, configPath: string, config: Json): Map<string, string> {
  const templates = new Map<string, string>();
  const field = config.chat_template ?? undefined;
  if (typeof field === "string") templates.set("default", field);
  else if (Array.isArray(field)) {
    for (const entry of field) {
      if (!isObject(entry) || typeof entry.name !== "string" || typeof entry.template !== "string") {
        throw new TokenizerError(`${configPath}: chat_template has an entry without name and template`);
      }
      templates.set(entry.name, entry.template);
    }
  } else if (field !== undefined) throw new TokenizerError(`${configPath}: chat_template is neither text nor a list`);
  const file = join(folder, "chat_template.jinja");
  if (existsSync(file)) templates.set("default", readText(file));
  return templates;
}
