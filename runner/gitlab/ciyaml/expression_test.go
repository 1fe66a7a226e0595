package ciyaml

import "testing"

// TestExpressions has GitLab's own table (spec/lib/gitlab/ci/pipeline/expression/statement_spec.rb), and more.
func TestExpressions(t *testing.T) {
	variables := map[string]string{
		"PRESENT": "my variable", "PATH": "a/path/variable/value", "FULL": "/a/full/path/variable/value", "EMPTY": "",
		"string": "abcde", "pattern1": "/^ab.*/", "pattern2": "/^at.*/", "flagged": "/^AB/i", "TRUE": "true", "SPACE": " ",
	}
	for expression, want := range map[string]bool{
		`$PRESENT == "my variable"`: true,
		`"my variable" == $PRESENT`: true,
		`$PRESENT == 'no match'`:    false,
		`$PRESENT == null`:          false,
		`$EMPTY == null`:            false,
		`"" == $EMPTY`:              true,
		`$UNDEFINED == null`:        true,
		`null == $UNDEFINED`:        true,
		`$UNDEFINED == ""`:          false,
		`$EMPTY`:                    false,
		`$SPACE`:                    false, // blank, in Ruby's words
		`$PRESENT`:                  true,
		`$UNDEFINED`:                false,
		`$PRESENT =~ /var.*e$/`:     true,
		`$PRESENT =~ /^var.*/`:      false,
		`$EMPTY =~ /var.*/`:         false,
		`$UNDEFINED =~ /var.*/`:     false,
		`$UNDEFINED =~ /^$/`:        true,
		`$PRESENT =~ /VAR.*/i`:      true,
		`$PRESENT =~ /VAR.*/`:       false,
		`$PATH =~ /path\/variable/`: true,
		`$FULL =~ /^\/a\/full\/path\/variable\/value$/`: true,
		`$PRESENT != "my variable"`:                     false,
		`$PRESENT != null`:                              true,
		`$EMPTY != null`:                                true,
		`"" != $EMPTY`:                                  false,
		`$UNDEFINED != null`:                            false,
		`$PRESENT !~ /var.*e$/`:                         false,
		`$PRESENT !~ /^var.*/`:                          true,
		`$EMPTY !~ /var.*/`:                             true,
		`$UNDEFINED !~ /var.*/`:                         true,
		`$PRESENT !~ /VAR.*/i`:                          false,
		`$PRESENT && "string"`:                          true,
		`$PRESENT && $EMPTY`:                            false, // the empty string comes out
		`$EMPTY && $PRESENT`:                            true,  // it is not false for &&
		`$EMPTY || $PRESENT`:                            false, // nor for ||
		`$PRESENT && null`:                              false,
		`null && $PRESENT`:                              false,
		`$UNDEFINED || $PRESENT`:                        true,
		`"" || null`:                                    false,
		`$EMPTY == "" && $PRESENT`:                      true,
		`$EMPTY == "" || $UNDEFINED`:                    true,
		`$PRESENT && null || $EMPTY == ""`:              true,
		`null && $PRESENT || $PRESENT`:                  true,
		`$PRESENT || null && null`:                      true, // && first
		`($PRESENT || null) && null`:                    false,
		`(($PRESENT))`:                                  true,
		`("string" || "test") == "string"`:              true,
		`(null || ("test" == "string"))`:                false,
		`("string" == ("test" && "string"))`:            true,
		`("string" == ("test" || "string"))`:            false,
		`("string" == ("string" || (("1" == "1") && ("2" == "3"))))`: true,
		`$string =~ "abcde"`:         true,
		`$string =~ $string`:         true,
		`$string =~ $pattern1`:       true,
		`$string =~ $pattern2`:       false,
		`$string =~ $flagged`:        true,
		`$string =~ $UNDEFINED`:      false,
		`$string !~ $UNDEFINED`:      true,
		`$string !~ $pattern2`:       true,
		`!$UNDEFINED`:                true,
		`!$PRESENT`:                  false,
		`!($PRESENT == "x") && true`: true,
		`$TRUE == "true"`:            true,
		`$TRUE == true`:              false, // a string is no boolean
		`true`:                       true,
		`false`:                      false,
		"$PRESENT\n  && $TRUE":       true,
		`"a" == 'a'`:                 true,
		`"it's" == "it's"`:           true,
		`$CI_X_ == null`:             true,
	} {
		e, err := parseExpression(expression)
		if err != nil {
			t.Errorf("%s: %v", expression, err)
		} else if got := e.holds(variables); got != want {
			t.Errorf("%s: got %t, want %t", expression, got, want)
		}
	}
}

func TestExpressionErrors(t *testing.T) {
	for expression, want := range map[string]string{
		"":                                  "it is empty",
		"  ":                                "it is empty",
		"$A = 1":                            "write == to compare",
		"$A == b":                           `Unknown lexeme found! Near "b": strings need quotes, and variables a $`,
		"$A ==":                             "a value is missing at its end",
		"== $A":                             "a value is missing before ==",
		"$A $B":                             "an operator is missing before $B",
		`$A "b"`:                            `an operator is missing before "b"`,
		"($A":                               "a parenthesis is not closed",
		"$A)":                               "an operator is missing before )",
		"${A}":                              "variables are written as $NAME here, not as ${NAME}",
		"$A & $B":                           "write && for and, || for or",
		"$A =~ /x":                          `a regular expression stands between two slashes, and slashes in it are written as \/`,
		"$A =~ /(/":                         "Invalid regular expression! error parsing regexp: missing closing ): `(`",
		"$A =~ /(?!x)/":                     "Invalid regular expression! error parsing regexp: invalid or unsupported Perl syntax: `(?!`",
		`$A == "b`:                          "a string is not closed",
		"&& $A":                             "a value is missing before &&",
		repeat("$A && ", 60):                "Too many tokens! An expression may have 100",
		repeat("(", 99):                     "a value is missing at its end",
		"$A =~ /" + repeat("x", 1001) + "/": "Invalid regular expression! it has more than 1000 characters",
	} {
		if _, err := parseExpression(expression); err == nil || err.Error() != want {
			t.Errorf("%.40s: got %v, want %s", expression, err, want)
		}
	}
}
