package agent

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// The config file of the package has every key, and all that it comments out is valid.
func TestTheConfigOfThePackage(t *testing.T) {
	b, err := os.ReadFile("../deploy/debian/palisade.toml")
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile(`(?m)^# ([a-z_0-9]+ = |\[)`).ReplaceAllString(string(b), "$1")
	for was, is := range map[string]string{`id = ""`: `id = "n1"`, `listen = ""`: `listen = "10.0.0.1:7420"`, `gossip = ""`: `gossip = "10.0.0.1:7421"`} {
		if strings.Count(text, "\n"+was) != 1 {
			t.Errorf("%q is not once in it", was)
		}
		text = strings.Replace(text, was, is, 1)
	}
	cfg, err := parseConfig([]byte(text))
	if err != nil {
		t.Fatalf("with all that it comments out: %v", err)
	}
	var walk func(v reflect.Value, path string)
	walk = func(v reflect.Value, path string) {
		switch {
		case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct && v.Len() > 0 && v.Index(0).NumField() > 0 && v.Type().Elem().Field(0).Tag.Get("toml") != "":
			walk(v.Index(0), path)
			return
		case v.Kind() != reflect.Struct || v.NumField() == 0 || v.Type().Field(0).Tag.Get("toml") == "":
			if key := path[strings.LastIndex(path, ".")+1:]; v.IsZero() || !strings.Contains(text, "\n"+key+" = ") {
				t.Errorf("%s is not in the file, or zero there", path)
			}
			return
		}
		for i := range v.NumField() {
			walk(v.Field(i), path+"."+v.Type().Field(i).Tag.Get("toml"))
		}
	}
	walk(reflect.ValueOf(cfg), "")
	if cfg.Inventory.Libvirt.Socket != "/run/libvirt/libvirt-sock-ro" {
		t.Errorf("libvirt's socket is %s: to look needs no more than the read-only one", cfg.Inventory.Libvirt.Socket)
	}
}
