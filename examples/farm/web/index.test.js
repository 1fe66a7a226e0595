const test = require("node:test");
const assert = require("node:assert");
const { answer } = require("./index.js");

test("numbers are told as text", () => assert.deepEqual(answer("60000"), { milliseconds: 60000, text: "1m" }));
test("other things are refused", () => assert.deepEqual(answer("x"), { error: "not a number" }));
