// Prints the JSON Schema of the configuration files: write_schema > cfg/schema.json

#include <iostream>

#include "cfg/configuration.h"

int main() {
  std::cout << nibble::configuration_schema().dump(2) << '\n';
}
