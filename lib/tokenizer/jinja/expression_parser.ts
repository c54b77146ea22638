/**
 * Jinja2's expressions.
 * Source: https://jinja.palletsprojects.com/en/stable/templates/#expressions
 *
 * @module
 */

import { JinjaError, type JinjaToken, type JinjaTokenKind } from "./lexer.ts";
import type { Arguments, Comparison, Expression } from "./nodes.ts";

const KEYWORDS: Readonly<Record<string, boolean | null>> = {
  true: true,
  True: true,
  false: false,
  False: false,
  none: null,
  None: null,
};

const NOTHING: Arguments = { positional: [], named: [] };

/** Reads expressions; the parser of statements goes on from it. */
export class ExpressionParser {
  /** All tokens of the template. */
  protected readonly tokens: readonly JinjaToken[];
  /** The token to be read next. */
  protected at = 0;

  /** Over a template's tokens. */
  constructor(tokens: readonly JinjaToken[]) {
    this.tokens = tokens;
  }

  /** One expression, or several with commas between: a tuple. */
  protected tuple(withIf: boolean = true, ends: readonly string[] = []): Expression {
    const one = (): Expression => withIf ? this.expression() : this.or();
    const first = one();
    if (!this.isOperator(",")) return first;
    const items = [first];
    while (this.take("operator", ",")) {
      const { kind, value } = this.tokens[this.at] ?? {};
      if (kind === "}}" || kind === "%}" || (kind === "operator" && value === ")") || ends.includes(value)) break;
      items.push(one());
    }
    return { type: "tuple", items };
  }

  protected expression(): Expression {
    let then = this.or();
    while (this.take("name", "if")) {
      const test = this.or();
      then = { type: "if", test, then, otherwise: this.take("name", "else") ? this.expression() : undefined };
    }
    return then;
  }

  protected or(): Expression {
    let left = this.#and();
    while (this.take("name", "or")) left = { type: "binary", operator: "or", left, right: this.#and() };
    return left;
  }

  #and(): Expression {
    let left = this.#not();
    while (this.take("name", "and")) left = { type: "binary", operator: "and", left, right: this.#not() };
    return left;
  }

  #not(): Expression {
    if (this.take("name", "not")) return { type: "unary", operator: "not", operand: this.#not() };
    const first = this.#binary(0), rest: Comparison[] = [];
    for (;;) {
      const { kind, value } = this.tokens[this.at] ?? {};
      const next = this.tokens[this.at + 1];
      if (kind === "operator" && ["==", "!=", "<", "<=", ">", ">="].includes(value)) {
        this.at++;
        rest.push({ operator: value, right: this.#binary(0) });
      } else if (this.take("name", "in")) {
        rest.push({ operator: "in", right: this.#binary(0) });
      } else if (this.isName("not") && next?.kind === "name" && next.value === "in") {
        this.at += 2;
        rest.push({ operator: "not in", right: this.#binary(0) });
      } else return rest.length > 0 ? { type: "compare", first, rest } : first;
    }
  }

  /** Sums, then `~`, then products, then powers: each binds closer than the one before. */
  #binary(level: number): Expression {
    const levels = [["+", "-"], ["~"], ["*", "/", "//", "%"], ["**"]];
    const next = (): Expression => level + 1 < levels.length ? this.#binary(level + 1) : this.#unary(true);
    let left = next();
    for (;;) {
      const { kind, value } = this.tokens[this.at] ?? {};
      if (kind !== "operator" || !levels[level].includes(value)) return left;
      this.at++;
      left = { type: "binary", operator: value, left, right: next() };
    }
  }

  #unary(filtered: boolean): Expression {
    const { kind, value } = this.tokens[this.at] ?? {};
    let node: Expression;
    if (kind === "operator" && (value === "-" || value === "+")) {
      this.at++;
      node = { type: "unary", operator: value, operand: this.#unary(false) };
    } else node = this.#primary();
    node = this.#postfix(node);
    return filtered ? this.filters(node) : node;
  }

  #primary(): Expression {
    const token = this.tokens[this.at++];
    if (token?.kind === "name") {
      if (Object.hasOwn(KEYWORDS, token.value)) return { type: "constant", value: KEYWORDS[token.value] };
      return { type: "name", name: token.value };
    }
    if (token?.kind === "string") {
      let value = token.value;
      while (this.tokens[this.at]?.kind === "string") value += this.tokens[this.at++].value;
      return { type: "constant", value };
    }
    if (token?.kind === "number") {
      const text = token.value.replaceAll("_", "");
      return { type: "constant", value: Number(text), float: /^\d*(?:\.|\d[eE])/.test(text) };
    }
    if (token?.kind === "operator" && token.value === "(") {
      if (this.take("operator", ")")) return { type: "tuple", items: [] };
      const inner = this.tuple();
      this.operator(")");
      return inner;
    }
    if (token?.kind === "operator" && token.value === "[") {
      return { type: "list", items: this.#items("]", () => this.expression()) };
    }
    if (token?.kind === "operator" && token.value === "{") {
      const pair = (): [Expression, Expression] => {
        const key = this.expression();
        this.operator(":");
        return [key, this.expression()];
      };
      return { type: "dict", items: this.#items("}", pair) };
    }
    this.at--;
    throw this.error(`unexpected ${JSON.stringify(token ? token.value || token.kind : "end")}`);
  }

  #items<T>(end: string, one: () => T): T[] {
    const items: T[] = [];
    while (!this.take("operator", end)) {
      if (items.length > 0) this.operator(",");
      if (this.take("operator", end)) break;
      items.push(one());
    }
    return items;
  }

  #postfix(node: Expression): Expression {
    for (;;) {
      if (this.take("operator", ".")) {
        const { kind, value } = this.tokens[this.at++] ?? {};
        if (kind === "name") node = { type: "attribute", object: node, name: value };
        else if (kind === "number") {
          for (const index of value.split(".")) {
            node = { type: "item", object: node, key: { type: "constant", value: Number(index) } };
          }
        } else throw this.error("a name or a number must follow the dot");
      } else if (this.take("operator", "[")) node = this.#subscript(node);
      else if (this.isOperator("(")) node = { type: "call", callee: node, given: this.#arguments() };
      else return node;
    }
  }

  #subscript(object: Expression): Expression {
    const bounds: (Expression | undefined)[] = [undefined];
    const first = this.isOperator(":") || this.isOperator("]") ? undefined : this.tuple();
    bounds[0] = first;
    while (this.take("operator", ":")) {
      bounds.push(this.isOperator(":") || this.isOperator("]") ? undefined : this.expression());
    }
    this.operator("]");
    if (bounds.length > 3 || (bounds.length === 1 && !first)) throw this.error("a wrong subscript");
    return bounds.length === 1 ? { type: "item", object, key: first! } : { type: "slice", object, bounds };
  }

  /** Filters, tests and calls, in any order. `bare`: the first filter stands without its `|`. */
  protected filters(node: Expression | undefined, bare: boolean = false): Expression {
    for (;;) {
      if (bare || this.take("operator", "|")) {
        bare = false;
        const name = this.#dotted();
        const given = this.isOperator("(") ? this.#arguments() : NOTHING;
        node = { type: "filter", subject: node, filter: { name, ...given } };
      } else if (node && this.take("name", "is")) node = this.#test(node);
      else if (node && this.isOperator("(")) node = { type: "call", callee: node, given: this.#arguments() };
      else return node!;
    }
  }

  #test(subject: Expression): Expression {
    const negated = this.take("name", "not"), name = this.#dotted();
    const { kind, value } = this.tokens[this.at] ?? {};
    let given = NOTHING;
    if (this.isOperator("(")) given = this.#arguments();
    else if (
      kind === "string" || kind === "number" || (kind === "operator" && "[{".includes(value)) ||
      (kind === "name" && !["else", "or", "and", "if", "in", "not", "is", "recursive"].includes(value))
    ) given = { positional: [{ value: this.#postfix(this.#primary()), spread: false }], named: [] };
    return { type: "test", subject, test: { name, ...given }, negated };
  }

  #dotted(): string {
    let name = this.name();
    while (this.take("operator", ".")) name += `.${this.name()}`;
    return name;
  }

  #arguments(): Arguments {
    const positional: { value: Expression; spread: boolean }[] = [], named: { name?: string; value: Expression }[] = [];
    this.operator("(");
    this.#items(")", () => {
      if (this.take("operator", "**")) return named.push({ value: this.expression() });
      if (this.take("operator", "*")) return positional.push({ value: this.expression(), spread: true });
      const next = this.tokens[this.at + 1];
      if (this.tokens[this.at]?.kind === "name" && next?.kind === "operator" && next.value === "=") {
        const name = this.name();
        this.at++;
        return named.push({ name, value: this.expression() });
      }
      if (named.length > 0) throw this.error("an argument by position follows one by name");
      return positional.push({ value: this.expression(), spread: false });
    });
    return { positional, named };
  }

  protected isName(value: string): boolean {
    return this.tokens[this.at]?.kind === "name" && this.tokens[this.at].value === value;
  }

  protected isOperator(value: string): boolean {
    return this.tokens[this.at]?.kind === "operator" && this.tokens[this.at].value === value;
  }

  protected take(kind: JinjaTokenKind, value?: string): boolean {
    const token = this.tokens[this.at];
    if (token?.kind !== kind || (value !== undefined && token.value !== value)) return false;
    this.at++;
    return true;
  }

  protected operator(value: string): void {
    if (!this.take("operator", value)) throw this.error(`expected ${value}, found ${this.#found()}`);
  }

  protected expect(kind: JinjaTokenKind): void {
    if (!this.take(kind)) throw this.error(`expected ${kind}, found ${this.#found()}`);
  }

  protected name(): string {
    const token = this.tokens[this.at];
    if (token?.kind !== "name") throw this.error(`expected a name, found ${this.#found()}`);
    this.at++;
    return token.value;
  }

  #found(): string {
    const token = this.tokens[this.at];
    return token ? token.value || token.kind : "the end";
  }

  protected error(message: string): JinjaError {
    const token = this.tokens[this.at] ?? this.tokens.at(-1);
    return new JinjaError(`line ${token?.line ?? 1}: ${message}`);
  }
}
