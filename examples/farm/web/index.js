const http = require("node:http");
const isNumber = require("is-number");
const ms = require("ms");

function answer(query) {
  return isNumber(query) ? { milliseconds: Number(query), text: ms(Number(query)) } : { error: "not a number" };
}

if (require.main === module) {
  http
    .createServer((request, response) => {
      const query = new URL(request.url, "http://localhost").searchParams.get("ms");
      response.end(JSON.stringify(answer(query)));
    })
    .listen(8080);
}

module.exports = { answer };
