// What Ollama does with a Modelfile, for tests: it reads the file, collates the messages, executes the template.
//
// The rules are those of parser/parser.go and template/template.go in github.com/ollama/ollama. Standard input is
// {"modelfile": text, "conversations": [[{"role", "content"}]]}, standard output the commands and a prompt for each.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/template"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type input struct {
	Modelfile     string      `json:"modelfile"`
	Conversations [][]message `json:"conversations"`
}

type output struct {
	Commands [][2]string `json:"commands"`
	Prompts  []string    `json:"prompts"`
}

// unquote says what a value is, and whether it is whole.
func unquote(value string) (string, bool) {
	value = strings.TrimSpace(value)
	for _, quote := range []string{`"""`, `"`} {
		if strings.HasPrefix(value, quote) {
			whole := len(value) >= 2*len(quote) && strings.HasSuffix(value, quote)
			return strings.TrimSuffix(strings.TrimPrefix(value, quote), quote), whole
		}
	}
	return value, true
}

// commands reads "NAME value" entries. A value ends at the first line break where its quotes are closed; characters
// that are not printable, but for blanks and line breaks, are lost.
func commands(text string) [][2]string {
	found := [][2]string{}
	for text != "" {
		text = strings.TrimLeft(text, " \t\r\n")
		if strings.HasPrefix(text, "#") {
			_, text, _ = strings.Cut(text, "\n")
			continue
		}
		name, rest, _ := strings.Cut(text, " ")
		if name == "PARAMETER" {
			name, rest, _ = strings.Cut(rest, " ")
		}
		var value strings.Builder
		end := len(rest)
		for i, r := range rest {
			if r == '\n' || r == '\r' {
				if _, whole := unquote(value.String()); whole {
					end = i
					break
				}
			}
			if strconv.IsPrint(r) || r == '\n' || r == '\r' || r == '\t' {
				value.WriteRune(r)
			}
		}
		whole, ok := unquote(value.String())
		if name == "" && rest == "" {
			break
		}
		if !ok {
			panic("unclosed value of " + name)
		}
		found = append(found, [2]string{name, whole})
		text = rest[end:]
	}
	return found
}

func collate(messages []message) (string, []*message) {
	var system []string
	var collated []*message
	for i := range messages {
		if messages[i].Role == "system" {
			system = append(system, messages[i].Content)
		}
		if last := len(collated) - 1; last >= 0 && collated[last].Role == messages[i].Role {
			collated[last].Content += "\n\n" + messages[i].Content
		} else {
			collated = append(collated, &messages[i])
		}
	}
	return strings.Join(system, "\n\n"), collated
}

func main() {
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		panic(err)
	}
	out := output{Commands: commands(in.Modelfile), Prompts: []string{}}
	for _, command := range out.Commands {
		if command[0] != "TEMPLATE" {
			continue
		}
		parsed, err := template.New("").Option("missingkey=zero").Parse(command[1])
		if err != nil {
			panic(fmt.Sprintf("%v in %q", err, command[1]))
		}
		for _, conversation := range in.Conversations {
			system, messages := collate(conversation)
			var prompt strings.Builder
			values := map[string]any{"System": system, "Messages": messages, "Response": ""}
			if err := parsed.Execute(&prompt, values); err != nil {
				panic(err)
			}
			out.Prompts = append(out.Prompts, prompt.String())
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		panic(err)
	}
}
