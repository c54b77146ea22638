/**
 * Jinja2's statements: a template becomes a tree.
 * Source: https://jinja.palletsprojects.com/en/stable/templates/
 *
 * @module
 */

import { ExpressionParser } from "./expression_parser.ts";
import { jinjaTokens } from "./lexer.ts";
import type { Expression, Parameter, Statement } from "./nodes.ts";

/** Parses a template. Throws JinjaError with the line. */
export function parseJinja(template: string): Statement[] {
  return new Parser(jinjaTokens(template)).template();
}

class Parser extends ExpressionParser {
  template(): Statement[] {
    const body = this.#body();
    if (this.at < this.tokens.length) throw this.error("an end without its beginning");
    return body;
  }

  /** Statements up to one of the tags named, which is left to be read. */
  #body(...ends: string[]): Statement[] {
    const body: Statement[] = [];
    while (this.at < this.tokens.length) {
      const { kind, value } = this.tokens[this.at];
      if (kind === "text") {
        this.at++;
        body.push({ type: "text", text: value });
      } else if (kind === "{{") {
        this.at++;
        body.push({ type: "output", value: this.tuple() });
        this.expect("}}");
      } else {
        const tag = this.tokens[this.at + 1];
        if (tag?.kind === "name" && ends.includes(tag.value)) return body;
        this.expect("{%");
        body.push(this.#statement(this.name()));
      }
    }
    if (ends.length > 0) throw this.error(`the template ends without ${ends.at(-1)}`);
    return body;
  }

  /** A body, the tag that ends it, and which one that is. */
  #until(...ends: string[]): { body: Statement[]; end: string } {
    const body = this.#body(...ends);
    this.expect("{%");
    return { body, end: this.name() };
  }

  #close(): void {
    this.expect("%}");
  }

  #block(end: string): Statement[] {
    this.#close();
    const { body } = this.#until(end);
    if (end === "endmacro" || end === "endcall") this.take("name");
    this.#close();
    return body;
  }

  #statement(name: string): Statement {
    switch (name) {
      case "if":
        return this.#branch();
      case "for":
        return this.#for();
      case "set":
        return this.#set();
      case "macro": {
        const macro = this.name(), parameters = this.#parameters();
        return { type: "macro", name: macro, parameters, body: this.#block("endmacro") };
      }
      case "call": {
        const parameters = this.isOperator("(") ? this.#parameters() : [];
        const call = this.expression();
        if (call.type !== "call") throw this.error("a call block needs a call");
        return { type: "callblock", call, parameters, body: this.#block("endcall") };
      }
      case "filter":
        return { type: "filtered", filter: this.filters(undefined, true), body: this.#block("endfilter") };
      case "with":
        return { type: "with", sets: this.#withSets(), body: this.#block("endwith") };
      case "generation":
        return { type: "generation", body: this.#block("endgeneration") };
      case "do": {
        const value = this.tuple();
        this.#close();
        return { type: "do", value };
      }
      case "break":
      case "continue":
        this.#close();
        return { type: name };
      default:
        throw this.error(`the tag ${JSON.stringify(name)} is not known`);
    }
  }

  #branch(): Statement {
    const test = this.tuple(false);
    this.#close();
    const { body: then, end } = this.#until("elif", "else", "endif");
    if (end === "elif") return { type: "branch", test, then, otherwise: [this.#branch()] };
    this.#close();
    let otherwise: Statement[] = [];
    if (end === "else") {
      otherwise = this.#until("endif").body;
      this.#close();
    }
    return { type: "branch", test, then, otherwise };
  }

  #for(): Statement {
    const target = this.#target();
    if (!this.take("name", "in")) throw this.error("for needs in");
    const over = this.tuple(false, ["recursive"]);
    const condition = this.take("name", "if") ? this.expression() : undefined;
    const recursive = this.take("name", "recursive");
    this.#close();
    const { body, end } = this.#until("else", "endfor");
    this.#close();
    let otherwise: Statement[] = [];
    if (end === "else") {
      otherwise = this.#until("endfor").body;
      this.#close();
    }
    return { type: "for", target, over, condition, recursive, body, otherwise };
  }

  #set(): Statement {
    const target = this.#target();
    if (this.take("operator", "=")) {
      const value = this.tuple();
      this.#close();
      return { type: "set", target, value };
    }
    const filter = this.isOperator("|") ? this.filters(undefined) : undefined;
    return { type: "capture", target, filter, body: this.#block("endset") };
  }

  #withSets(): { target: Expression; value: Expression }[] {
    const sets: { target: Expression; value: Expression }[] = [];
    while (this.tokens[this.at]?.kind !== "%}") {
      if (sets.length > 0) this.operator(",");
      const target = this.#target();
      this.operator("=");
      sets.push({ target, value: this.expression() });
    }
    return sets;
  }

  /** A name, an attribute of a namespace, or several names. */
  #target(): Expression {
    const one = (): Expression => {
      if (this.take("operator", "(")) {
        const inner = this.#target();
        this.operator(")");
        return inner;
      }
      const name: Expression = { type: "name", name: this.name() };
      return this.take("operator", ".") ? { type: "attribute", object: name, name: this.name() } : name;
    };
    const items = [one()];
    while (this.take("operator", ",")) {
      if (this.isName("in") || this.isOperator("=") || this.isOperator(")")) break;
      items.push(one());
    }
    return items.length > 1 || this.#isAfterComma() ? { type: "tuple", items } : items[0];
  }

  #isAfterComma(): boolean {
    const { kind, value } = this.tokens[this.at - 1];
    return kind === "operator" && value === ",";
  }

  #parameters(): Parameter[] {
    const parameters: Parameter[] = [];
    this.operator("(");
    while (!this.take("operator", ")")) {
      if (parameters.length > 0) this.operator(",");
      if (this.take("operator", ")")) break;
      const name = this.name();
      parameters.push({ name, missing: this.take("operator", "=") ? this.expression() : undefined });
    }
    return parameters;
  }
}
