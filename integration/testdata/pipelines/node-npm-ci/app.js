const isNumber = require("is-number");

module.exports = (words) => words.filter(isNumber).length;
